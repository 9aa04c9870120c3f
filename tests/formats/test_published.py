"""Checkpoints that other tools wrote: every sampled matrix, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.formats import (
    QuantizedTensor,
    awq,
    compressed_tensors,
    describe_linear,
    gptq,
    open_checkpoint,
    read_linear,
    read_quantization,
)
from edgellm.sidefiles import read_side_json

ROOT = Path(__file__).parents[3] / "shared" / "data" / "quantized"
CASES = sorted(path.name for path in ROOT.iterdir() if path.is_dir()) if ROOT.is_dir() else []

pytestmark = pytest.mark.skipif(not CASES, reason="shared data is not beside the repository")


@pytest.mark.parametrize("case", CASES)
def test_dequantized_matrices_equal_the_tools_own(case):
    with open_checkpoint(ROOT / case) as checkpoint, np.load(ROOT / case / "reference.npz") as reference:
        config = read_side_json(checkpoint.side_files, "config.json")
        quantization = read_quantization(checkpoint.side_files, config)
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        hidden, head_dim = config["hidden_size"], config.get("head_dim") or config["hidden_size"] // heads
        shapes = {"k_proj": (kv_heads * head_dim, hidden), "down_proj": (hidden, config["intermediate_size"])}
        names = [name for name in reference.files if name.startswith("deq/")]
        assert names
        for name in names:
            prefix = name.removeprefix("deq/").removesuffix(".weight")
            out, inputs = next((s for key, s in shapes.items() if prefix.endswith(key)), reference[name].shape)
            q = read_linear(checkpoint, prefix, quantization, out, inputs)
            assert isinstance(q, QuantizedTensor)
            np.testing.assert_array_equal(q.dequantize(), reference[name], err_msg=name)
            assert_packs_back(checkpoint, prefix, quantization, q)
            facts = describe_linear(checkpoint, prefix, quantization)
            assert (facts["bits"], facts["act_order"]) == (q.bits, q.permutation is not None)


def assert_packs_back(checkpoint, prefix, quantization, q):
    """Our own packing gives the tool's words again."""
    scheme = quantization.scheme(prefix)
    if scheme.layout == "gptq":
        packed = gptq.pack(q, checkpoint_format=scheme.checkpoint_format, word_carry=scheme.word_carry)
    else:
        packed = {"awq": awq, "compressed-tensors": compressed_tensors}[scheme.layout].pack(q)
    for part, array in packed.items():
        if part != "weight_scale":  # BF16 in the file, float32 here
            np.testing.assert_array_equal(array, checkpoint.read(f"{prefix}.{part}"), err_msg=part)

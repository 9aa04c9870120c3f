"""Weights on the device are, bit for bit, what the NumPy packer makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.backends.cuda.calls import KernelSet
from edgellm.backends.cuda.device import open_device
from edgellm.backends.cuda.device_pack import largest_of
from edgellm.backends.cuda.matrices import plan_matrices
from edgellm.backends.cuda.packing import pack_linear, quantize, slot_of
from edgellm.backends.cuda.upload import DeviceWeights, loading_nbytes, vectors_nbytes
from edgellm.model import fuse, open_model
from edgellm.model.weights import Weights
from tests.golden_models import GOLDEN_FOLDER
from tools.make_synthetic import Storage, make_synthetic

QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 2048,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
}


def uploaded(folder: Path, head: str = "int8") -> tuple[DeviceWeights, Weights]:
    with open_model(folder) as model:
        program = fuse(model.weights.program)
        plans = plan_matrices(program, model.weights, head)
        told: list[tuple[int, int]] = []
        held = DeviceWeights(KernelSet(open_device(0)), program, model.weights, plans, lambda *at: told.append(at))
        assert told[-1][0] == told[-1][1]
        assert loading_nbytes(plans) > 0
        assert vectors_nbytes(program) > 0
        return held, model.weights


def read(held: DeviceWeights, address: int, like: np.ndarray) -> np.ndarray:
    found = np.empty_like(like)
    with held._pool.device:
        held._stream.download(found, address)
        held._stream.wait()
    return found


def check(held: DeviceWeights, weights: Weights) -> None:
    for name, matrix in held.matrices.items():
        plan = matrix.plan
        if plan.layout.bits < 16 and plan.dense:
            dense = weights.embedding() if plan.names[0] == "embed_tokens" else weights.linear(name)
            packed = quantize(dense, plan.layout)
        elif plan.names[0] == "embed_tokens":
            packed = pack_linear([weights.embedding()], layout=plan.layout)
        else:
            packed = pack_linear([weights.linear(part) for part in plan.names], paired=plan.paired)
        assert (matrix.layout, matrix.factor) == (packed.layout, packed.factor), name
        assert matrix.zero == (0 if packed.layout.own_zeros or packed.layout.bits == 16 else packed.zero), name
        for part in ("tiles", "scales", "zeros"):
            expected = getattr(packed, part)
            if expected.size:
                np.testing.assert_array_equal(read(held, getattr(matrix, part), expected), expected, err_msg=name)


@pytest.mark.parametrize(
    "storage",
    [
        Storage("gptq", 4, 32),
        Storage("gptq", 8, 32, sym=False),
        Storage("gptq", 4, 32, desc_act=True),
        Storage("gptq", 8, -1),
        Storage("awq", 4, 16, sym=False),
    ],
    ids=str,
)
def test_quantized_weights(storage, shipped_gpu, tmp_path):
    shipped_gpu(80)
    held, weights = uploaded(make_synthetic(QWEN, tmp_path / "model", storage, tokenizer=False))
    check(held, weights)
    fused = held.matrices["layers.0.self_attn.q_proj"]
    names = list(fused.plan.names)
    bias = read(held, fused.bias, np.zeros(16 * fused.layout.row_tiles, np.float32))
    np.testing.assert_array_equal(bias[: fused.layout.rows], np.concatenate([weights.bias(name) for name in names]))
    if storage.desc_act:
        order = read(held, fused.order, np.zeros(64, np.uint32))
        np.testing.assert_array_equal(order, weights.linear(names[0]).permutation)
    else:
        assert fused.order == 0


@pytest.mark.parametrize("head", ["int8", "int4", "keep"])
def test_dense_weights_and_heads(head, shipped_gpu):
    shipped_gpu(80)
    check(*uploaded(GOLDEN_FOLDER / "llama-gqa-head-dim", head))
    held, weights = uploaded(GOLDEN_FOLDER / "llama-tied", head)
    check(held, weights)
    assert held.matrices["lm_head"] is held.matrices["embed_tokens"]


def test_a_pair_has_its_rows_in_turns():
    assert [slot_of(row, half) for half in (0, 1) for row in (0, 7, 8)] == [0, 7, 16, 8, 15, 24]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_largest_of_numbers_as_stored(dtype):
    numbers = np.array([0.5, -3.0, 2.0], np.float32)
    stored = {"float32": numbers, "float16": numbers.astype(np.float16), "bfloat16": numbers.view(np.uint32) >> 16}
    array = stored[dtype].astype(np.uint16) if dtype == "bfloat16" else stored[dtype]
    assert largest_of(array) == 3.0
    assert largest_of(array[:0]) == 0.0

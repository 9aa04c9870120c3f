"""Whether converted checkpoints mean to others what they mean to edgellm. Needs torch and transformers.

    python -m tools.check_converted FOLDER ...

The weights are unpacked by the few lines of torch below, written from the published layouts of GPTQ v1 and AWQ gemm and
sharing nothing with `edgellm.formats`, put into transformers' own float32 model, and its logits are compared with those
of edgellm's reference on the packed file. Exits with 1 where a logit differs by more than 1e-3.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from edgellm.convert.blocks import BlockRunner
from edgellm.model import open_model

TOLERANCE = 1e-3
_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # nibble that holds column j of eight
_LENGTH = 48


def fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [rows, n] -> int64 [rows, n * 32 / bits], a dense little-endian stream along each row."""
    rows = words.shape[0]
    shifts = torch.arange(32)
    stream = (words.long().bitwise_and(0xFFFFFFFF)[..., None] >> shifts).bitwise_and(1).reshape(rows, -1, bits)
    return (stream << torch.arange(bits)).sum(-1)


def gptq_weight(parts: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
    """float32 [out, in] of qweight, qzeros (zero minus one), scales and g_idx."""
    codes = fields(parts["qweight"].T.contiguous(), bits).T  # (in, out)
    zeros = fields(parts["qzeros"], bits) + 1  # (groups, out)
    group = parts["g_idx"].long()
    return ((codes - zeros[group]).float() * parts["scales"].float()[group]).T.contiguous()


def awq_weight(parts: dict[str, torch.Tensor], group_size: int) -> torch.Tensor:
    """float32 [out, in] of qweight, qzeros and scales, columns interleaved in every word."""

    def columns(words: torch.Tensor) -> torch.Tensor:
        nibbles = fields(words, 4).reshape(words.shape[0], -1, 8)
        return nibbles[..., _AWQ_ORDER].reshape(words.shape[0], -1)

    codes, zeros = columns(parts["qweight"]), columns(parts["qzeros"])
    size = len(codes) if group_size == -1 else group_size
    group = torch.arange(len(codes)) // size
    return ((codes - zeros[group]).float() * parts["scales"].float()[group]).T.contiguous()


def unpacked(folder: Path, stated: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors in float32, quantized linears as weights."""
    stored: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored.update(load_file(file))
    state = {}
    for name, tensor in stored.items():
        stem, _, part = name.rpartition(".")
        if part == "qweight":
            parts = {key: stored[f"{stem}.{key}"] for key in ("qweight", "qzeros", "scales")}
            if stated["quant_method"] == "awq":
                state[f"{stem}.weight"] = awq_weight(parts, stated["group_size"])
                continue
            parts["g_idx"] = stored[f"{stem}.g_idx"]
            bits = 32 * tensor.shape[0] // len(parts["g_idx"])
            state[f"{stem}.weight"] = gptq_weight(parts, bits)
        elif part not in ("qzeros", "scales", "g_idx"):
            state[name] = tensor.float()
    return state


def difference(folder: Path) -> float:
    """The largest difference of a logit."""
    config = AutoConfig.from_pretrained(folder)
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    missing, unexpected = model.load_state_dict(unpacked(folder, stated), strict=False)
    wrong = [name for name in missing if not (name == "lm_head.weight" and config.tie_word_embeddings)]
    if wrong or unexpected:
        raise SystemExit(f"{folder}: missing {wrong[:3]}, unexpected {list(unexpected)[:3]}")
    model.tie_weights()
    ids = np.random.default_rng(0).integers(3, config.vocab_size, (2, _LENGTH), dtype=np.int32)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids).long()).logits.numpy()
    with open_model(folder) as opened:
        runner = BlockRunner(opened)
        hidden = runner.embed(ids)
        for layer in range(runner.num_layers):
            hidden = runner.block(layer, hidden)
        return float(np.abs(runner.logits(hidden) - expected).max())


def main(folders: list[str]) -> int:
    """Compare each folder."""
    worst = 0.0
    for folder in folders:
        found = difference(Path(folder))
        worst = max(worst, found)
        print(f"{folder}: largest difference of a logit {found:.2g}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

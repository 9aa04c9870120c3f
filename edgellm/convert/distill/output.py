"""A trained model as a Hugging Face checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgellm.convert.distill.parameters import BIAS
from edgellm.convert.distill.reduce import Model
from edgellm.convert.distill.settings import DTYPES
from edgellm.errors import NumericalError
from edgellm.formats import TensorSource, float32_to_bfloat16, is_side_file, save_checkpoint
from edgellm.sidefiles import SideFiles

_PREFIX = "model."
_REPLACED = ("config.json", "quantize_config.json", "quant_config.json", "quantization_config.json")


def write_model(
    model: Model, files: SideFiles, out: str | os.PathLike[str], dtype: str, extra: Mapping[str, bytes], overwrite: bool
) -> Path:
    """Write config, tokenizer and weights, whole or not at all.

    Args:
        files: the side files of the student's source; its tokenizer and templates are copied.
        dtype: float16, bfloat16 or float32.
        extra: further files by name.

    Raises:
        NumericalError: a weight does not fit the dtype.
        OutputError: `out` is taken or cannot be written.
    """
    sources: dict[str, TensorSource] = {}
    for stem, names in _linears(model).items():
        for suffix, key in ((".weight", ""), (".bias", BIAS)):
            parts = [model.parameters.arrays[name + key] for name in names if name + key in model.parameters.arrays]
            if parts:
                sources[stem + suffix] = _source(stem + suffix, parts, dtype)
    values = {**model.values, "torch_dtype": dtype, "tie_word_embeddings": model.parameters.tied}
    values.pop("quantization_config", None)
    values.pop("dtype", None)  # transformers 5's name of torch_dtype
    kept = {name: files.read(name) for name in files.names() if is_side_file(name) and name not in _REPLACED}
    side_files = {name: data for name, data in kept.items() if data is not None}
    side_files["config.json"] = json.dumps(values, indent=2).encode() + b"\n"
    return save_checkpoint(sources, out, side_files={**side_files, **extra}, overwrite=overwrite)


def _linears(model: Model) -> dict[str, list[str]]:
    """The file's name of each tensor without its last part, and the weights that stand in it, stacked by rows."""
    architecture = model.program.config.architecture
    whole = {part: (fused, parts) for fused, parts in architecture.fused.items() for part in parts}
    found: dict[str, list[str]] = {}
    for name in model.program.weights:
        if name == "lm_head":
            if not model.parameters.tied:
                found["lm_head"] = [name]
            continue
        if not name.startswith("layers."):
            found[_PREFIX + name] = [name]
            continue
        _, layer, leaf = name.split(".", 2)
        base = f"layers.{layer}."
        if leaf in whole:
            fused, parts = whole[leaf]
            found[f"{_PREFIX}{base}{fused}"] = [base + part for part in parts]
        else:
            found[f"{_PREFIX}{base}{architecture.names.get(leaf, leaf)}"] = [name]
    return found


def _source(name: str, parts: list[np.ndarray], dtype: str) -> TensorSource:
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])

    def load() -> np.ndarray:
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if not np.isfinite(whole).all():
            raise NumericalError("a weight is NaN or infinite", key=name)
        if dtype == "bfloat16":
            return float32_to_bfloat16(whole)
        with np.errstate(over="ignore"):
            stored = whole.astype(dtype)
        if not np.isfinite(stored).all():
            hint = "Choose --dtype bfloat16 or float32."
            raise NumericalError("a weight is too large for the dtype", key=name, found=dtype, hint=hint)
        return stored

    return TensorSource(DTYPES[dtype], shape, load)

"""What a quantized linear becomes in the files: GPTQ v1 or AWQ gemm tensors, and the words of config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgellm._version import __version__
from edgellm.convert.assignment import Assignment
from edgellm.convert.recipe import Recipe
from edgellm.convert.scheme import Scheme
from edgellm.convert.units import Unit
from edgellm.formats import QuantizedTensor, awq, gptq
from edgellm.formats.bits import WORD_BITS
from edgellm.formats.quantized import group_count

#: (dtype, shape) by what stands behind the linear's name.
Shapes = dict[str, tuple[str, tuple[int, ...]]]


def packed_shapes(packing: str, unit: Unit, scheme: Scheme) -> Shapes:
    """The tensors of a quantized linear before it is quantized."""
    outputs, inputs = unit.shape
    groups = group_count(inputs, scheme.group_width(inputs))
    if packing == "awq":
        width = outputs // awq.NIBBLES
        return {
            "qweight": ("I32", (inputs, width)),
            "qzeros": ("I32", (groups, width)),
            "scales": ("F16", (groups, outputs)),
        }
    return {
        "qweight": ("I32", (inputs * scheme.bits // WORD_BITS, outputs)),
        "qzeros": ("I32", (groups, outputs * scheme.bits // WORD_BITS)),
        "scales": ("F16", (groups, outputs)),
        "g_idx": ("I32", (inputs,)),
    }


def pack_unit(packing: str, tensor: QuantizedTensor) -> dict[str, np.ndarray]:
    """The tensors of a quantized linear. Raises `UsageError` where the format cannot hold it."""
    return awq.pack(tensor) if packing == "awq" else gptq.pack(tensor, checkpoint_format="gptq")


def quantization_config(recipe: Recipe, assignment: Assignment, units: list[Unit]) -> dict[str, Any]:
    """`quantization_config` of config.json, in the words that transformers, GPTQModel and vLLM read."""
    default = assignment.default
    skipped = [unit.stem for unit in units if unit.layer is not None and assignment.schemes[unit.stem] is None]
    if recipe.packing == "awq":
        return {
            "quant_method": "awq",
            "bits": default.bits,
            "group_size": default.group_size,
            "zero_point": not default.sym,
            "version": "gemm",
            "modules_to_not_convert": skipped or None,
        }
    lm_head = next((assignment.schemes[unit.stem] for unit in units if unit.layer is None), None)
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": default.bits,
        "group_size": default.group_size,
        "sym": default.sym,
        "desc_act": default.desc_act and recipe.method == "gptq",
        "static_groups": default.static_groups,
        "damp_percent": recipe.damp_percent,
        "true_sequential": recipe.true_sequential,
        "lm_head": lm_head is not None,
        "pack_dtype": "int32",
        "dynamic": _dynamic(assignment, units) or None,
        "meta": {"quantizer": [f"edgellm:{__version__}"], "method": recipe.method},
    }


def _dynamic(assignment: Assignment, units: list[Unit]) -> dict[str, Mapping[str, Any]]:
    """GPTQModel's per-module settings: an expression for each module that differs; "-:" leaves one unquantized."""
    found: dict[str, Mapping[str, Any]] = {}
    for unit in units:
        scheme = assignment.schemes[unit.stem]
        if scheme is None:
            if unit.layer is not None:
                found[f"-:^{re.escape(unit.stem)}$"] = {}
            continue
        differs = {
            key: getattr(scheme, key)
            for key in ("bits", "group_size", "sym")
            if getattr(scheme, key) != getattr(assignment.default, key)
        }
        if differs:
            found[f"+:^{re.escape(unit.stem)}$"] = differs
    return found

"""A smaller model out of a larger one: rows and columns of what `reduction` keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.convert.distill.parameters import BIAS, Parameters
from edgellm.convert.distill.reduction import Kept, Statistics
from edgellm.convert.distill.student_config import check_layers, read_values, reduced_values
from edgellm.model.config import ModelConfig
from edgellm.model.program import Op, Program, build_program


@dataclass(frozen=True)
class Model:
    """A model in memory.

    Attributes:
        values: of its config.json.
        program: plain.
        parameters: its weights, float32.
    """

    values: Mapping[str, Any]
    program: Program
    parameters: Parameters


def reduce(source: Model, kept: Kept, found: Statistics, file: str) -> Model:
    """The model of what is kept of `source`.

    A norm over fewer elements divides by the root mean square of these; its weights get the mean ratio to that of all,
    as the calibration rows had it, so that what is left has the size that it had.

    Args:
        found: statistics of the source on calibration rows.
        file: named in errors.

    Raises:
        ModelError: config.json cannot say what is kept.
    """
    config = source.program.config
    values = reduced_values(source.values, config, kept)
    made = read_values(values, file)
    check_layers(made, config, kept, file)
    program = build_program(made)
    arrays: dict[str, np.ndarray] = {}
    for op in source.program.ops:
        if op.weights and (op.layer is None or op.layer in kept.layers):
            _take(op, source, kept, found, arrays)
    # Gemma's factor follows from hidden_size: the embedding makes up for it, and the final norm where both are one
    ratio = config.embedding_multiplier / made.embedding_multiplier
    if ratio != 1.0:
        arrays["embed_tokens"] *= np.float32(ratio)
        if source.parameters.tied:
            arrays["norm"] = _scaled(arrays["norm"], made.norm_offset, 1 / ratio)
    return Model(values, program, Parameters(arrays, source.parameters.tied))


def _take(op: Op, source: Model, kept: Kept, found: Statistics, arrays: dict[str, np.ndarray]) -> None:
    """The kept part of an op's weights, under the student's names."""
    config = source.program.config
    for number, name in enumerate(op.weights):
        target = _renamed(name, op.layer, kept)
        array = source.parameters[name]
        if op.kind == "embed":
            arrays[target] = np.ascontiguousarray(array[:, kept.channels])
        elif op.kind == "rms_norm":
            arrays[target] = _norm(op, array, kept, config, found)
        elif op.kind == "logits":
            if not source.parameters.tied:
                arrays[target] = np.ascontiguousarray(array[:, kept.channels])
                _take_bias(source, name, target, slice(None), arrays)
        else:
            rows = kept.buffer(op.outputs[number], op.layer, config)
            columns = kept.buffer(op.inputs[0], op.layer, config)
            arrays[target] = np.ascontiguousarray(array[np.ix_(rows, columns)])
            _take_bias(source, name, target, rows, arrays)


def _take_bias(source: Model, name: str, target: str, rows: Any, arrays: dict[str, np.ndarray]) -> None:
    bias = source.parameters.bias(name)
    if bias is not None:
        arrays[target + BIAS] = bias[rows].copy()


def _norm(op: Op, weight: np.ndarray, kept: Kept, config: ModelConfig, found: Statistics) -> np.ndarray:
    if op.attributes.get("group"):  # over each head's elements, which all stay
        return weight.copy()
    elements = kept.buffer(op.inputs[0], op.layer, config)
    shares = found.shares[op.weights[0]]
    mean_square = shares[elements].sum() / len(elements) * len(shares)  # of the kept ones, over that of all
    return _scaled(weight[elements], op.attributes["offset"], float(np.sqrt(mean_square)))


def _scaled(weight: np.ndarray, offset: float, factor: float) -> np.ndarray:
    """The weight w' with offset + w' = factor * (offset + w)."""
    return ((weight + np.float32(offset)) * np.float32(factor) - np.float32(offset)).astype(np.float32)


def _renamed(name: str, layer: int | None, kept: Kept) -> str:
    if layer is None:
        return name
    return name.replace(f"layers.{layer}.", f"layers.{kept.layers.index(layer)}.", 1)

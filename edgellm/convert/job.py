"""A conversion before it begins: which tensors it writes, in which pieces, and the files that stand beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgellm.convert.assignment import Assignment, assign
from edgellm.convert.packing import packed_shapes, quantization_config
from edgellm.convert.recipe import Recipe
from edgellm.convert.scheme import Scheme
from edgellm.convert.units import Unit, layer_of, units_of
from edgellm.errors import UsageError
from edgellm.formats import is_side_file
from edgellm.formats.writer import TensorSource
from edgellm.model import OpenedModel, Weights
from edgellm.sidefiles import read_side_json

#: What a linear's weight may be stored as; everything but a bias gives way to its quantized form.
_WEIGHT_PARTS = (
    "weight", "qweight", "qzeros", "scales", "g_idx",
    "weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape",
)  # fmt: skip
#: Statements of the source about its own quantization; config.json carries ours.
_STALE = ("quantize_config.json", "quant_config.json", "quantization_config.json")


@dataclass(frozen=True)
class Piece:
    """What is written, and on a resumed run proven, as one.

    Attributes:
        name: "rest", "layer N" or "lm_head".
        layer: of a layer.
        units: linears that are quantized here.
        copied: tensors that are the source's, or its values changed (norms that AWQ folded into).
    """

    name: str
    layer: int | None
    units: tuple[Unit, ...]
    copied: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """A conversion.

    Attributes:
        opened: the source.
        recipe, assignment: what is asked, and what each linear gets.
        units: all linears of the output that may be quantized.
        sources: dtype and shape of all output tensors, in order.
        pieces: in the order they are made.
        side_files: bytes by name, config.json among them.
    """

    opened: OpenedModel
    recipe: Recipe
    assignment: Assignment
    units: tuple[Unit, ...]
    sources: dict[str, TensorSource]
    pieces: tuple[Piece, ...]
    side_files: dict[str, bytes]

    @property
    def nbytes(self) -> int:
        """Bytes of the output's tensors."""
        return sum(source.nbytes for source in self.sources.values())

    def scheme(self, unit: Unit) -> Scheme | None:
        """What the assignment gives a unit."""
        return self.assignment.schemes[unit.stem]

    def tensors(self, piece: Piece) -> list[str]:
        """Names of all output tensors of a piece, in the order in which they are proven."""
        names = list(piece.copied)
        for unit in piece.units:
            names += [f"{unit.stem}.{part}" for part in packed_shapes(self.recipe.packing, unit, self.scheme(unit))]
        return names

    def digest(self, source: str, calibration: str) -> str:
        """What tells a run that may be resumed from another, given those of the source and the calibration tokens."""
        layout = [(name, item.dtype, item.shape) for name, item in self.sources.items()]
        facts = [self.recipe.digest(), source, calibration, layout, sorted(self.side_files)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def make_job(opened: OpenedModel, recipe: Recipe, assignment: Assignment | None = None) -> Job:
    """The job of converting an opened model.

    Args:
        assignment: schemes that were decided elsewhere (a bit budget); None takes the recipe's.

    Raises:
        UsageError: the recipe does not fit the model.
    """
    weights = opened.weights
    units = units_for(weights, recipe)
    assignment = assignment or assign(recipe, units)
    quantized = {unit.stem: unit for unit in units if assignment.schemes[unit.stem] is not None}
    if not quantized:
        raise UsageError("no linear is left to quantize", key="overrides")
    sources, owners = _outputs(opened, recipe, assignment, units, quantized)
    return Job(
        opened, recipe, assignment, tuple(units), sources, _pieces(units, quantized, sources, owners),
        _side_files(opened, recipe, assignment, units),
    )  # fmt: skip


def units_for(weights: Weights, recipe: Recipe) -> list[Unit]:
    """All linears that a recipe may quantize: a tied lm_head too where it asks for that."""
    units = units_of(weights)
    if recipe.lm_head_bits is not None and weights.lm_head_is_embedding:
        rows, width = weights.program.weights["lm_head"].shape
        units.append(Unit(weights.file_name("lm_head"), ("lm_head",), (rows,), width, None))
    return units


def _outputs(
    opened: OpenedModel, recipe: Recipe, assignment: Assignment, units: list[Unit], quantized: dict[str, Unit]
) -> tuple[dict[str, TensorSource], dict[str, int | None]]:
    """(dtype and shape of every output tensor, the decoder layer each one that is not packed belongs to)."""
    checkpoint, weights = opened.checkpoint, opened.weights
    layers = {_stem(weights, name): layer_of(name) for name in weights.program.weights}
    by_stem = {unit.stem: unit for unit in units}
    sources: dict[str, TensorSource] = {}
    owners: dict[str, int | None] = {}

    def add(name: str, dtype: str, shape: tuple[int, ...]) -> None:
        sources[name] = TensorSource(dtype, shape, lambda: opened.checkpoint.read(name))

    def add_packed(unit: Unit) -> None:
        shapes = packed_shapes(recipe.packing, unit, assignment.schemes[unit.stem])
        for part, (dtype, shape) in shapes.items():
            add(f"{unit.stem}.{part}", dtype, shape)

    written: set[str] = set()
    for name, info in checkpoint.tensors.items():
        stem, _, part = name.rpartition(".")
        unit = by_stem.get(stem) if part in _WEIGHT_PARTS else None
        if unit is None or (stem not in quantized and part == "weight"):
            add(name, info.dtype, info.shape)
            owners[name] = layers.get(stem)
        elif stem not in written:
            written.add(stem)
            if stem in quantized:
                add_packed(unit)
            else:  # quantized in the source, left in floating point here
                add(f"{stem}.weight", "F16", unit.shape)
                owners[f"{stem}.weight"] = unit.layer
    for stem, unit in quantized.items():
        if stem not in written:  # a tied lm_head, which the source does not have
            add_packed(unit)
    return sources, owners


def _stem(weights: Weights, name: str) -> str:
    if weights.program.weights[name].kind != "linear" or (name == "lm_head" and weights.lm_head_is_embedding):
        return weights.file_name(name)
    return weights.place(name)[0]


def _pieces(
    units: Iterable[Unit], quantized: dict[str, Unit], sources: dict[str, TensorSource], owners: dict[str, int | None]
) -> tuple[Piece, ...]:
    layers = sorted(
        {layer for layer in owners.values() if layer is not None} | {u.layer for u in units if u.layer is not None}
    )
    pieces = [Piece("rest", None, (), tuple(name for name in sources if name in owners and owners[name] is None))]
    for layer in layers:
        copied = tuple(name for name in sources if owners.get(name, -1) == layer)
        pieces.append(Piece(f"layer {layer}", layer, tuple(u for u in quantized.values() if u.layer == layer), copied))
    head = tuple(unit for unit in quantized.values() if unit.layer is None)
    if head:
        pieces.append(Piece("lm_head", None, head, ()))
    return tuple(pieces)


def _side_files(opened: OpenedModel, recipe: Recipe, assignment: Assignment, units: list[Unit]) -> dict[str, bytes]:
    files = opened.side_files
    found = {name: files.read(name) for name in files.names() if is_side_file(name) and name not in _STALE}
    config: dict[str, Any] = dict(read_side_json(files, "config.json") or {})
    config.pop("compression_config", None)
    config["quantization_config"] = quantization_config(recipe, assignment, units)
    if recipe.lm_head_bits is not None:
        config["tie_word_embeddings"] = False  # the quantized lm_head stands beside the embedding
    found["config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    return {name: data for name, data in found.items() if data is not None}

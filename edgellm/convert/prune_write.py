"""A pruned model as a checkpoint: rows and columns taken out of the source's tensors, layers numbered anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.convert.units import Unit, layer_of, units_of
from edgellm.errors import NumericalError
from edgellm.formats import TensorSource, float32_to_bfloat16, is_side_file, save_checkpoint
from edgellm.formats.dtypes import NUMPY_DTYPES
from edgellm.model import ModelConfig, OpenedModel
from edgellm.sidefiles import read_side_json

if TYPE_CHECKING:
    from edgellm.convert.prune_layers import LayerCuts

_BY_LAYER = ("layer_types", "no_rope_layers")  # lists of config.json with an entry a layer
_BY_COLUMNS = ("self_attn.o_proj", "mlp.down_proj")


class Spill:
    """Re-fitted weights in files until they are written: a model's worth of float32 need not fit into memory.

    Args:
        folder: is there, and goes with what is in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: set[str] = set()

    def put(self, name: str, weight: np.ndarray) -> None:
        """Keep the weight of linear `name`, float32 [out, kept]."""
        np.save(self._folder / f"{name}.npy", weight)
        self._names.add(name)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def get(self, name: str) -> np.ndarray:
        """What `put` kept."""
        return np.load(self._folder / f"{name}.npy")


@dataclass(frozen=True)
class Written:
    """What came out: parameters and bytes of all tensors, and notes for people."""

    parameters: int
    nbytes: int
    notes: tuple[str, ...]


def write_pruned(
    opened: OpenedModel, layers: Sequence[LayerCuts], spill: Spill, out: Path, *, overwrite: bool = False
) -> Written:
    """Write the layers that stay, each with what is left of it. Raises as `save_checkpoint`."""
    tensors = _Tensors(opened, spill)
    tensors.add_outside()
    for number, layer in enumerate(layers):
        tensors.add_layer(number, layer)
    config = pruned_config(opened, layers)
    files = opened.side_files
    side = {name: files.read(name) for name in files.names() if is_side_file(name) and name != "config.json"}
    side["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    metadata = {key: value for key, value in opened.checkpoint.metadata.items() if key == "format"}
    save_checkpoint(tensors.found, out, metadata=metadata, side_files=side, overwrite=overwrite)
    parameters = sum(int(np.prod(source.shape)) for source in tensors.found.values())
    return Written(parameters, sum(source.nbytes for source in tensors.found.values()), _notes(config))


def _notes(config: dict[str, Any]) -> tuple[str, ...]:
    if not isinstance(config["intermediate_size"], list):
        return ()
    return ("layers have different widths (intermediate_size is a list): edgellm reads that, most engines do not",)


class _Tensors:
    """The tensors to be written, by name, each computed when it is asked for."""

    def __init__(self, opened: OpenedModel, spill: Spill) -> None:
        self.opened, self.weights, self.spill = opened, opened.weights, spill
        self.found: dict[str, TensorSource] = {}
        self._units = units_of(opened.weights)
        self._vectors = [name for name, spec in self.weights.program.weights.items() if spec.kind == "vector"]

    def add_outside(self) -> None:
        """Embedding, last norm, and lm_head where there is one."""
        stems = [self.weights.file_name("embed_tokens")]
        stems += [self.weights.file_name(name) for name in self._vectors if layer_of(name) is None]
        stems += [unit.stem for unit in self._units if unit.layer is None]
        for stem in stems:
            for suffix in ("weight", "bias"):
                if f"{stem}.{suffix}" in self.opened.checkpoint.tensors:
                    self._copy(f"{stem}.{suffix}", f"{stem}.{suffix}")

    def add_layer(self, number: int, cuts: LayerCuts) -> None:
        """A layer of the source under its new number."""
        old, new = (f"{self.weights.prefix}layers.{layer}." for layer in (cuts.layer, number))
        for name in self._vectors:
            if layer_of(name) == cuts.layer:
                stem = self.weights.file_name(name)
                self._copy(f"{stem}.weight", f"{new}{stem.removeprefix(old)}.weight")
        for unit in self._units:
            if unit.layer == cuts.layer:
                self._add_unit(unit, new + unit.stem.removeprefix(old), cuts)

    def _add_unit(self, unit: Unit, stem: str, cuts: LayerCuts) -> None:
        config, dtype = self.opened.config, self.opened.checkpoint.info(f"{unit.stem}.weight").dtype
        if unit.leaf in _BY_COLUMNS:
            columns = _kept_inputs(unit.leaf, cuts, config)
            spilled = unit.names[0] in self.spill
            load = partial(self._spilled, unit, dtype) if spilled else self._picked(unit.stem, columns, 1)
            self._put(f"{stem}.weight", dtype, (unit.shape[0], len(columns)), load)
            if f"{unit.stem}.bias" in self.opened.checkpoint.tensors:
                self._copy(f"{unit.stem}.bias", f"{stem}.bias")
            return
        rows, first = [], 0
        for name, count in zip(unit.names, unit.rows, strict=True):
            rows.append(first + _kept_outputs(name.split(".", 2)[2], cuts, config))
            first += count
        kept = np.concatenate(rows)
        spilled = unit.names[0] in self.spill
        load = partial(self._spilled, unit, dtype) if spilled else self._picked(unit.stem, kept, 0)
        self._put(f"{stem}.weight", dtype, (len(kept), unit.in_features), load)
        bias = f"{unit.stem}.bias"
        if bias in self.opened.checkpoint.tensors:
            info = self.opened.checkpoint.info(bias)
            self._put(f"{stem}.bias", info.dtype, (len(kept),), lambda: self.opened.checkpoint.read(bias)[kept])

    def _picked(self, stem: str, indexes: np.ndarray, axis: int) -> Callable[[], np.ndarray]:
        return lambda: np.take(self.opened.checkpoint.read(f"{stem}.weight"), indexes, axis=axis)

    def _spilled(self, unit: Unit, dtype: str) -> np.ndarray:
        return np.concatenate([as_stored(self.spill.get(name), dtype, name) for name in unit.names])

    def _copy(self, source: str, target: str) -> None:
        info = self.opened.checkpoint.info(source)
        self._put(target, info.dtype, info.shape, partial(self.opened.checkpoint.read, source))

    def _put(self, name: str, dtype: str, shape: tuple[int, ...], load: Callable[[], np.ndarray]) -> None:
        self.found[name] = TensorSource(dtype, shape, load)


def as_stored(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """float32 `values` in the NumPy form of a safetensors dtype. Raises `NumericalError` for what it cannot hold."""
    if dtype == "BF16":
        return float32_to_bfloat16(values)
    with np.errstate(over="ignore"):
        stored = values.astype(NUMPY_DTYPES[dtype])
    if not np.isfinite(stored).all():
        raise NumericalError("a re-fitted weight is NaN, or beyond what the checkpoint's dtype holds", key=name)
    return stored


def _kept_inputs(leaf: str, cuts: LayerCuts, config: ModelConfig) -> np.ndarray:
    """Columns of o_proj or down_proj that stay."""
    return cuts.channels if leaf == "mlp.down_proj" else _spans(cuts.groups, _group_width(config))


def _kept_outputs(leaf: str, cuts: LayerCuts, config: ModelConfig) -> np.ndarray:
    """Rows of one of the other linears that stay."""
    if leaf in ("mlp.gate_proj", "mlp.up_proj"):
        return cuts.channels
    return _spans(cuts.groups, _group_width(config) if leaf == "self_attn.q_proj" else config.head_dim)


def _group_width(config: ModelConfig) -> int:
    """Query rows that belong to one KV head."""
    return config.num_attention_heads // config.num_key_value_heads * config.head_dim


def _spans(units: np.ndarray, width: int) -> np.ndarray:
    return (units[:, None] * width + np.arange(width)).reshape(-1)


def pruned_config(opened: OpenedModel, layers: Sequence[LayerCuts]) -> dict[str, Any]:
    """config.json of the pruned model: new sizes, and what differed by layer said layer by layer."""
    config = opened.config
    values = dict(read_side_json(opened.side_files, "config.json") or {})
    kept = [entry.layer for entry in layers]
    for key in _BY_LAYER:
        if isinstance(values.get(key), list):
            values[key] = [values[key][layer] for layer in kept]
    groups, widths = len(layers[0].groups), [len(entry.channels) for entry in layers]
    values["num_hidden_layers"] = len(kept)
    values["intermediate_size"] = widths if len(set(widths)) > 1 else widths[0]
    if groups != config.num_key_value_heads:
        values["num_attention_heads"] = config.num_attention_heads // config.num_key_value_heads * groups
        values["num_key_value_heads"] = groups
        values["head_dim"] = config.head_dim
    if len(kept) < config.num_hidden_layers:
        _say_by_layer(values, config, kept)
    return values


def _say_by_layer(values: dict[str, Any], config: ModelConfig, kept: list[int]) -> None:
    """Windows and rotations that followed from a layer's number no longer do."""
    if len(set(config.layer_windows)) > 1:
        slides = [config.layer_windows[layer] is not None for layer in kept]
        values["layer_types"] = ["sliding_attention" if flag else "full_attention" for flag in slides]
    if None in config.layer_ropes:
        values["no_rope_layers"] = [int(config.layer_ropes[layer] is not None) for layer in kept]

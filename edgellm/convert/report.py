"""What a conversion cost: errors by layer, quality on held-out text, bits, bytes, time and memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.convert.evaluate import Divergence, Evaluation
from edgellm.errors import ModelError, OutputError
from edgellm.jsonfile import read_json

if TYPE_CHECKING:
    from edgellm.convert.prune import PruneReport

FILE_NAME = "report.json"
VERSION = 1


@dataclass(frozen=True)
class LinearCost:
    """What one linear lost.

    Attributes:
        name: in the file, or the leaf of a layer for what was pruned; layers are numbered as in the output.
        error: relative error of the weight, |W - W'| / |W|, where it was quantized; of the output on calibration tokens
            (squared) where its inputs were pruned.
        bits, group_size: of the codes, None where it was not quantized.
        loss: squared error of the outputs over the calibration tokens, None where it was not measured.
        error_without: the error before the re-fit or search that brought it down, None without one.
    """

    name: str
    error: float
    bits: int | None = None
    group_size: int | None = None
    loss: float | None = None
    error_without: float | None = None

    @property
    def layer(self) -> int | None:
        """The decoder layer in the name, None outside of the layers."""
        parts = self.name.split(".")
        number = parts[parts.index("layers") + 1] if "layers" in parts[:-1] else ""
        return int(number) if number.isdecimal() else None


@dataclass(frozen=True)
class Stage:
    """Quality at one point of the way: the label ("pruned", "re-fitted", "quantized"), bytes of tensors, and figures.

    `quality.against` is the source's.
    """

    label: str
    nbytes: int
    quality: Evaluation


@dataclass(frozen=True)
class Report:
    """A conversion, from its source to its output.

    Attributes:
        source, output: paths as people named them. method: "gptq", "awq", "rtn", "prune", "distill" ...
        source_bytes, output_bytes: of all tensors.
        bits_per_weight: of the quantized weights, scales and zero points counted; None where none is.
        seconds: wall time. peak_bytes: the most memory the process held, None where the system does not say.
        settings: of the conversion, as JSON. linears: what each lost.
        stages: quality on the way, the output last. held_out: the text that it was measured on, None where it was not.
        pruning: `PruneReport.as_dict`, None where nothing was pruned.
        notes: what a person should know.
    """

    source: str
    output: str
    method: str
    source_bytes: int
    output_bytes: int
    bits_per_weight: float | None = None
    seconds: float = 0.0
    peak_bytes: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    linears: tuple[LinearCost, ...] = ()
    stages: tuple[Stage, ...] = ()
    held_out: str | None = None
    pruning: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def quality(self) -> Evaluation | None:
        """Of the output, None where it was not measured."""
        return self.stages[-1].quality if self.stages else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts = {**asdict(self), "version": VERSION}
        for entry, stage in zip(facts["stages"], self.stages, strict=True):
            entry["quality"] = stage.quality.as_dict()
        return facts

    def as_bytes(self) -> bytes:
        """What stands in report.json."""
        return (json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_report(report: Report, folder: str | os.PathLike[str]) -> Path:
    """Write report.json into a folder, replacing one that is there. Raises `OutputError`."""
    path = Path(folder) / FILE_NAME
    aside = path.with_name(f"{FILE_NAME}.partial-{os.getpid()}")
    try:
        aside.write_bytes(report.as_bytes())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OutputError(f"cannot be written ({error})", file=path) from error
    return path


def read_report(path: str | os.PathLike[str]) -> Report:
    """A report.json, or the one of a folder. Raises `InputError`, `ModelError`."""
    path = Path(path) / FILE_NAME if os.path.isdir(path) else Path(path)
    values = read_json(path)
    if values.pop("version", None) != VERSION:
        raise ModelError("a report of another version", file=path, key="version", allowed=str(VERSION))
    try:
        values["linears"] = tuple(LinearCost(**entry) for entry in values["linears"])
        values["stages"] = tuple(_stage(entry) for entry in values["stages"])
        values["notes"] = tuple(values["notes"])
        return Report(**values)
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(f"not a report ({error})", file=path) from None


def _stage(values: dict[str, Any]) -> Stage:
    quality = {key: float("nan") if value is None else value for key, value in values["quality"].items()}
    against = values["quality"]["against"]
    quality["against"] = None if against is None else Divergence(**against)
    return Stage(values["label"], values["nbytes"], Evaluation(**quality))


def pruned_costs(report: PruneReport) -> tuple[LinearCost, ...]:
    """The linears behind the cuts of a pruning, in layers numbered as in what it wrote."""
    found = []
    for number, entry in enumerate(report.layers):
        for leaf, cut in (("self_attn.o_proj", entry.attention), ("mlp.down_proj", entry.mlp)):
            if cut is not None:
                name = f"layers.{number}.{leaf}"
                fitted = cut.refit_error is not None
                error = cut.refit_error if fitted else cut.error
                found.append(LinearCost(name, error, error_without=cut.error if fitted else None))
    return tuple(found)


def layer_errors(linears: Sequence[LinearCost]) -> dict[int, dict[str, float]]:
    """Error by layer and leaf (`q_proj`, `down_proj` ...); `cut down_proj` for a cut that a quantization follows."""
    found: dict[int, dict[str, float]] = {}
    quantized = {linear.name.rpartition(".")[2] for linear in linears if linear.bits is not None}
    for linear in linears:
        if linear.layer is not None:
            leaf = linear.name.rpartition(".")[2]
            if linear.bits is None and leaf in quantized:
                leaf = f"cut {leaf}"
            found.setdefault(linear.layer, {})[leaf] = linear.error
    return found

"""A conversion from beginning to end: piece after piece into the output, proven before a resumed run believes it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.convert.allocator import freed_memory_kept
from edgellm.convert.awq_layer import AwqLayer
from edgellm.convert.blocks import BlockRunner
from edgellm.convert.budget import Budget
from edgellm.convert.calibration import Calibration
from edgellm.convert.job import Job, Piece
from edgellm.convert.output import StagedOutput, staging_folder
from edgellm.convert.packing import pack_unit
from edgellm.convert.patched import PatchedWeights, stored_as
from edgellm.convert.quantizers import GptqLayer, LinearReport, quantize_by_rtn
from edgellm.convert.sequential import Sequential
from edgellm.convert.state import State, clear, locked, read_state, refuse_unfinished
from edgellm.convert.units import Unit
from edgellm.errors import OutputError, UsageError
from edgellm.formats import QuantizedTensor
from edgellm.formats.writer import check_free
from edgellm.model import OpenedModel

#: Called with (work done, work in all, what is being done).
Progress = Callable[[float, float, str], None]


@dataclass(frozen=True)
class ConversionResult:
    """What a conversion did.

    Attributes:
        out: the folder.
        linears: what each quantized linear cost, in the order of the layers; of a resumed run only those it did itself.
        resumed_pieces: pieces that an earlier run had done.
        seconds: of this run.
        source_bytes, output_bytes: of the tensors.
        bits_per_weight: of the quantized weights, scales and zero points counted.
        notes: what a person should know.
    """

    out: Path
    linears: tuple[LinearReport, ...]
    resumed_pieces: int
    seconds: float
    source_bytes: int
    output_bytes: int
    bits_per_weight: float
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return {**asdict(self), "out": str(self.out)}


def run_job(
    job: Job,
    out: str | os.PathLike[str],
    *,
    calibration: Calibration | None,
    source_digest: str,
    budget: Budget | None = None,
    resume: bool = False,
    overwrite: bool = False,
    aside: tuple[str, ...] = (),
    extra_files: Callable[[ConversionResult], dict[str, bytes]] | None = None,
    progress: Progress | None = None,
) -> ConversionResult:
    """Convert.

    Args:
        job: what is written.
        out: the new folder.
        calibration: tokens; None for "rtn" alone.
        source_digest: of the source's tensors (`formats.fingerprint`).
        budget: memory for activations; None is plenty.
        resume: go on with an unfinished output of the same job; where there is none, begin.
        overwrite: replace `out`, and an unfinished output of any job.
        aside: names in the staging folder that hold the source; they stay until the output is whole.
        extra_files: side files that tell about the result, made when all tensors are written.
        progress: see `Progress`.

    Raises:
        UsageError: no calibration where the method needs it.
        OutputError: `out` is taken, is the source, or cannot be written; an unfinished output is there and neither
            `resume` nor `overwrite` was asked for.
        ModelError, NumericalError, OutOfMemoryError: from the source's weights.
    """
    if job.recipe.method != "rtn" and calibration is None:
        raise UsageError("needs calibration tokens", key="method", found=job.recipe.method)
    out = Path(os.path.abspath(out))
    check_place(job.opened, out, overwrite)
    if not resume and not overwrite:
        refuse_unfinished(staging_folder(out), aside)
    with locked(staging_folder(out)), freed_memory_kept():
        return _Run(job, out, calibration, source_digest, budget or Budget(), progress, aside).run(
            resume, overwrite, extra_files
        )


def check_place(opened: OpenedModel, out: Path, overwrite: bool) -> None:
    """Raises `OutputError` where `out` is taken, or is the source."""
    for file in opened.checkpoint.files:
        if out.exists() and os.path.samefile(out, file.parent):
            raise OutputError("is the source itself", file=out, hint="Choose another folder for the output.")
    check_free(out, overwrite)


class _Run:
    """One run over the pieces of a job."""

    def __init__(
        self, job: Job, out: Path, calibration: Calibration | None, source: str, budget: Budget,
        progress: Progress | None, aside: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.aside = aside
        self.job, self.out, self.calibration, self.budget = job, out, calibration, budget
        self.progress = progress
        self.folder = staging_folder(out)
        self.identity = job.digest(source, "" if calibration is None else calibration.digest())
        self.weights = PatchedWeights(job.opened.weights)
        self.linears: list[LinearReport] = []
        self.calibrates = job.recipe.method != "rtn"
        layers = len([piece for piece in job.pieces if piece.layer is not None])
        self.total = float(max(layers, 1))
        self.finished = self.part = 0.0
        self.label = ""
        self.layer_size: dict[int, int] = {}
        for unit in (unit for piece in job.pieces if piece.layer is not None for unit in piece.units):
            self.layer_size[unit.layer] = self.layer_size.get(unit.layer, 0) + unit.size
        self.linear_stems = {unit.stem: unit for unit in job.units}
        self.owners = {unit.stem: unit.names for unit in job.units}
        source = job.opened.weights
        vectors = [name for name, spec in source.program.weights.items() if spec.kind == "vector"]
        self.owners |= {source.file_name(name): (name,) for name in vectors}

    def run(
        self, resume: bool, overwrite: bool, extra_files: Callable[[ConversionResult], dict[str, bytes]] | None
    ) -> ConversionResult:
        start = time.perf_counter()
        state = read_state(self.folder) if resume else None
        if state is None or state.identity != self.identity:
            if state is not None and not overwrite:
                hint = "Give the same options and files as before, or --overwrite to begin anew."
                raise OutputError("is unfinished from another source or recipe", file=self.folder, hint=hint)
            clear(self.folder, self.aside)
            state = State(self.folder, self.identity)
        self.state = state
        self.output = StagedOutput(
            self.out, self.job.sources, max_shard_bytes=self.job.recipe.shard_bytes, resume=bool(state.pieces)
        )
        try:
            resumed = self._proven()
            self._pieces(resumed)
            result = self._result(time.perf_counter() - start, resumed)
            side_files = {**self.job.side_files, **({} if extra_files is None else extra_files(result))}
            self.output.finish(side_files, overwrite=overwrite)
        finally:
            self.output.close()
        return result

    def _proven(self) -> int:
        """How many pieces of the state are in the files as it says; all others are forgotten."""
        done = list(self.state.pieces.items())
        count = 0
        for piece, (name, digest) in zip(self.job.pieces, done):  # noqa: B905 (the state may know fewer)
            if piece.name != name or self.output.digest(self.job.tensors(piece)) != digest:
                break
            count += 1
        if count < len(done):
            self.state.keep(count)
            self.state.hidden = None  # it belongs to a later layer than the last proven one
        return count

    def _pieces(self, resumed: int) -> None:
        states = None
        if self.calibrates:
            runner = BlockRunner(self.job.opened, self.weights, step_tokens=self.budget.step_tokens)
            memory = self.budget.activation_bytes
            states = Sequential(runner, self.folder, memory_bytes=memory)
            resumed = self._take_up(states, resumed)
        self.finished = float(sum(piece.layer is not None for piece in self.job.pieces[:resumed]))
        try:
            for piece in self.job.pieces[resumed:]:
                self._piece(piece, states)
        finally:
            if states is not None:
                states.close()

    def _take_up(self, states: Sequential, resumed: int) -> int:
        """Have the hidden states for the next layer; where their file does not prove itself, begin with layer 0."""
        if resumed == len(self.job.pieces):
            return resumed
        layers = [piece.layer for piece in self.job.pieces[:resumed] if piece.layer is not None]
        if layers and states.resume(layers[-1] + 1, *self.calibration.token_ids.shape, self.state.hidden):
            return resumed
        self._report("embedding the calibration text")
        states.begin(self.calibration.token_ids)
        before = next(number for number, piece in enumerate(self.job.pieces) if piece.layer is not None)
        self.state.keep(min(resumed, before))
        return min(resumed, before)

    def _piece(self, piece: Piece, states: Sequential | None) -> None:
        self.label = piece.name if piece.name != "rest" else "embeddings and norms"
        self.part = 0.0
        self._report(self.label)
        onward = piece is not self.job.pieces[-1]  # what comes out of the last layer is for lm_head's calibration alone
        if piece.layer is not None and self.job.recipe.method == "gptq":
            GptqLayer(self.job, piece, self.weights, self._write_unit).run(piece.layer, states, onward=onward)
        elif piece.layer is not None and self.job.recipe.method == "awq":
            AwqLayer(self.job, piece, self.weights, self._write_unit).run(piece.layer, states, onward=onward)
        elif piece.units and states is not None:
            GptqLayer(self.job, piece, self.weights, self._write_unit).run_head(states)
        else:
            quantize_by_rtn(self.job, piece, self.weights, self._write_unit)
        for name in piece.copied:
            self.output.write(name, self._copied(name))
        self.state.pieces[piece.name] = self.output.digest(self.job.tensors(piece))
        if piece.layer is not None:
            self.weights.forget(f"layers.{piece.layer}.")
            self.state.hidden = states.hidden.digest() if states is not None and onward else None
            self.finished = float(sum(done.startswith("layer") for done in self.state.pieces))
        self.state.save()

    def _write_unit(self, unit: Unit, tensor: QuantizedTensor, report: LinearReport) -> None:
        for part, array in pack_unit(self.job.recipe.packing, tensor).items():
            self.output.write(f"{unit.stem}.{part}", array)
        self.linears.append(report)
        if unit.layer is not None:
            self.part += unit.size / self.layer_size[unit.layer]
        self._report(f"{self.label}: {unit.leaf}", self.part)

    def _copied(self, name: str) -> np.ndarray:
        """A tensor of the source, or what has become of it."""
        checkpoint = self.job.opened.checkpoint
        stem, _, part = name.rpartition(".")
        owners = self.owners.get(stem, ())
        if any(self.weights.replaced(own) for own in owners) and (part == "bias" or stem not in self.linear_stems):
            read = self.weights.bias if part == "bias" else self.weights.vector
            return stored_as(np.concatenate([read(own) for own in owners]), checkpoint.info(name).dtype)
        if name in checkpoint.tensors and checkpoint.info(name).dtype == self.job.sources[name].dtype:
            return checkpoint.read(name)
        return self.linear_stems[stem].weight(self.weights).astype(np.float16)

    def _report(self, label: str, part: float = 0.0) -> None:
        if self.progress is not None:
            self.progress(self.finished + part, self.total, label)

    def _result(self, seconds: float, resumed: int) -> ConversionResult:
        checkpoint = self.job.opened.checkpoint
        notes = [*self.job.assignment.notes, *(() if self.calibration is None else self.calibration.notes)]
        return ConversionResult(
            out=self.out,
            linears=tuple(self.linears),
            resumed_pieces=resumed,
            seconds=seconds,
            source_bytes=sum(info.nbytes for info in checkpoint.tensors.values()),
            output_bytes=self.job.nbytes,
            bits_per_weight=self.job.assignment.bits_per_weight(self.job.units),
            notes=tuple(notes),
        )

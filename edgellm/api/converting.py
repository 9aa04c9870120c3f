"""`edgellm.convert`: from a published checkpoint to a smaller one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgellm.api import memory, planning
from edgellm.api.fingerprint import fingerprint
from edgellm.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from edgellm.convert.budget import Budget
    from edgellm.convert.calibration import Calibration
    from edgellm.convert.forecast import Forecast
    from edgellm.convert.job import Job
    from edgellm.convert.pipeline import ConversionResult
    from edgellm.convert.recipe import Recipe
    from edgellm.model import OpenedModel

#: Sequences and tokens of each that held-out text is measured on, at most.
_HELD_OUT = (32, 512)
#: Called with (work done, work in all, what is being done); layers are what is counted.
ConvertProgress = Callable[[float, float, str], None]


@dataclass(frozen=True)
class Conversion:
    """A conversion made ready: what it will write, with which memory. `forecast` and `convert` share it."""

    opened: OpenedModel
    job: Job
    calibration: Calibration | None
    budget: Budget


def convert(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recipe: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    held_out: str | os.PathLike[str] | None = None,
    progress: ConvertProgress | None = None,
    **settings: Any,
) -> ConversionResult:
    """Quantize a checkpoint into a new folder of standard GPTQ or AWQ safetensors.

    Args:
        src: a safetensors file, a folder or a bundle: float16, bfloat16 or float32, or quantized already.
        out: the new folder.
        recipe: settings by name; those given here count more.
        resume: go on with what an interrupted run left, with the same settings.
        overwrite: replace `out`, and what another run left unfinished.
        held_out: a text that calibration has not seen; the report then says what the conversion cost in perplexity.
        progress: see `ConvertProgress`.
        settings: see `convert.recipe.Recipe` and `convert.scheme.Scheme`: method, bits, group_size, sym, desc_act ...

    Raises:
        UsageError: a setting outside its range, or that the model cannot have.
        InputError, ModelError: the source or the calibration text.
        OutputError: `out` is taken, is the source, or cannot be written.
        OutOfMemoryError: `max_ram` cannot be kept; nothing was begun.
    """
    from edgellm.convert.pipeline import run_job

    with planning.open_path(src) as opened:
        ready = prepare(opened, make(recipe, settings))
        rows = None if held_out is None else _held_out_rows(opened, held_out)
        result = run_job(
            ready.job,
            out,
            calibration=ready.calibration,
            source_digest=fingerprint(opened.checkpoint),
            budget=ready.budget,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
        _write_report(ready, result, rows, held_out)
        return result


def forecast(src: str | os.PathLike[str], *, recipe: Mapping[str, Any] | None = None, **settings: Any) -> Forecast:
    """What `convert` with the same arguments will write, hold and take; measures this machine for about two seconds.

    Raises: as `convert`, but for the output.
    """
    from edgellm.convert.forecast import foresee

    with planning.open_path(src) as opened:
        ready = prepare(opened, make(recipe, settings))
        return foresee(ready.job, ready.calibration, ready.budget)


def make(recipe: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of given settings over those of a file. Raises `UsageError`."""
    from edgellm.convert.recipe import make_recipe

    given = {key: value for key, value in settings.items() if value is not None}
    return make_recipe({**(recipe or {}), **given})


def prepare(opened: OpenedModel, recipe: Recipe) -> Conversion:
    """Read the calibration text, decide each linear's bits, plan the memory. Raises: as `convert`."""
    from edgellm.convert.budget import plan
    from edgellm.convert.calibration import load_calibration
    from edgellm.convert.job import make_job, units_for
    from edgellm.convert.survey import assign_by_budget

    calibration = None
    if recipe.method != "rtn" or recipe.average_bits is not None:
        length = min(recipe.sequence_length, opened.config.max_position_embeddings)
        calibration = load_calibration(
            opened, recipe.calibration, sequences=recipe.sequences, length=length, seed=recipe.seed
        )
    elif recipe.calibration is not None:
        raise UsageError("rounding to nearest reads no calibration text", key="calibration", found=recipe.calibration)
    assignment = None
    if recipe.average_bits is not None:
        assignment = assign_by_budget(opened, recipe, units_for(opened.weights, recipe), calibration)
    job = make_job(opened, recipe, assignment)
    tokens = 0 if calibration is None else calibration.tokens
    available = memory.available_bytes()
    limit = recipe.max_ram
    process = memory.resident_bytes()
    if limit is None and available is not None:
        limit = process + available - memory.reserve_bytes(available)
    return Conversion(opened, job, calibration, plan(job, tokens, limit, process))


def _held_out_rows(opened: OpenedModel, path: str | os.PathLike[str]) -> np.ndarray:
    """Token ids int32 [N, L] of a held-out text. Raises: as `load_calibration`."""
    from edgellm.convert.calibration import load_calibration

    length = min(_HELD_OUT[1], opened.config.max_position_embeddings)
    return load_calibration(opened, path, sequences=_HELD_OUT[0], length=length).token_ids


def _write_report(
    ready: Conversion, result: ConversionResult, rows: np.ndarray | None, held_out: str | os.PathLike[str] | None
) -> None:
    """Put report.json into the output: each linear's error, and on held-out text the output against the source."""
    from dataclasses import asdict

    from edgellm.convert.held_out import compare_on_rows
    from edgellm.convert.report import LinearCost, Report, Stage, write_report

    stages = ()
    if rows is not None:
        with planning.open_path(result.out) as model:
            stages = (Stage("quantized", result.output_bytes, compare_on_rows(model, ready.opened, rows)),)
    notes = list(result.notes)
    if result.resumed_pieces:
        notes.append(f"{result.resumed_pieces} pieces were done by an earlier run; their errors are not listed")
    report = Report(
        source=ready.opened.path,
        output=str(result.out),
        method=ready.job.recipe.method,
        source_bytes=result.source_bytes,
        output_bytes=result.output_bytes,
        bits_per_weight=result.bits_per_weight,
        seconds=round(result.seconds, 3),
        peak_bytes=memory.peak_bytes(),
        settings={**asdict(ready.job.recipe), "overrides": dict(ready.job.recipe.overrides)},
        linears=tuple(
            LinearCost(entry.name, entry.error, entry.bits, entry.group_size, entry.loss) for entry in result.linears
        ),
        stages=stages,
        held_out=None if held_out is None else os.fspath(held_out),
        notes=tuple(notes),
    )
    write_report(report, result.out)

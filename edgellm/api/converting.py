"""`edgellm.convert`: from a published checkpoint to a smaller one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgellm.api import memory, planning
from edgellm.api.conversion_report import Account
from edgellm.errors import UsageError
from edgellm.formats import fingerprint

if TYPE_CHECKING:
    from edgellm.convert.budget import Budget
    from edgellm.convert.calibration import Calibration
    from edgellm.convert.forecast import Forecast
    from edgellm.convert.job import Job
    from edgellm.convert.prune_stage import Pruned
    from edgellm.convert.recipe import Recipe
    from edgellm.convert.report import Report
    from edgellm.model import OpenedModel

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
) -> Report:
    """Prune and quantize a checkpoint into a new folder of standard GPTQ or AWQ safetensors.

    Args:
        src: a safetensors file, a folder or a bundle: float16, bfloat16 or float32, or quantized already.
        out: the new folder.
        recipe: settings by name; those given here count more.
        resume: go on with what an interrupted run left, with the same settings.
        overwrite: replace `out`, and what another run left unfinished.
        held_out: a text that calibration has not seen; the report then says what the conversion cost in perplexity.
        progress: see `ConvertProgress`.
        settings: see `convert.recipe.Recipe` and `convert.scheme.Scheme`: method, bits, group_size, sym, desc_act ...
            `prune` is a table of `convert.prune_settings.PruneSettings`, or true: see `convert.recipe.make_recipe`.

    Returns:
        What report.json in the output says.

    Raises:
        UsageError: a setting outside its range, or that the model cannot have.
        InputError, ModelError: the source or the calibration text.
        OutputError: `out` is taken, is the source, or cannot be written.
        OutOfMemoryError: `max_ram` cannot be kept; nothing was begun.
    """
    made = make(recipe, settings)
    with ExitStack() as stack:
        opened = stack.enter_context(planning.open_path(src))
        account = Account(opened, made, out, held_out)
        run = _Run(opened, made, out, account, resume=resume, overwrite=overwrite, progress=progress)
        pruned, model = None, opened
        if made.prune is not None:
            pruned = run.prune()
            model = stack.enter_context(planning.open_path(pruned.folder))
        account.read_held_out(model)
        if pruned is not None:
            account.measure("pruned", model, pruned)
        return run.quantize(model, pruned) if made.quantizes else run.write_pruned(pruned)


def forecast(src: str | os.PathLike[str], *, recipe: Mapping[str, Any] | None = None, **settings: Any) -> Forecast:
    """What `convert` with the same arguments will write, hold and take; measures this machine for about two seconds.

    Raises: as `convert`, but for the output.
    """
    from edgellm.convert.forecast import foresee
    from edgellm.convert.prune_budget import plan_pruning
    from edgellm.convert.prune_forecast import foresee_pruned

    made = make(recipe, settings)
    with planning.open_path(src) as opened:
        whole = None
        if made.quantizes:
            ready = prepare(opened, made)
            whole = foresee(ready.job, ready.calibration, ready.budget)
        if made.prune is None:
            return whole
        calibration = _calibration(opened, made) if made.prune.cuts else None
        shape = (0, 0) if calibration is None else calibration.token_ids.shape
        cut = made.prune.recipe(opened.config, _group_size(made))
        budget = plan_pruning(opened, cut, shape, *_memory_limit(made))
        return foresee_pruned(opened, made, cut, shape, budget, whole)


def make(recipe: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of given settings over those of a file. Raises `UsageError`."""
    from edgellm.convert.recipe import make_recipe

    given = {key: value for key, value in settings.items() if value is not None}
    return make_recipe({**(recipe or {}), **given})


def prepare(opened: OpenedModel, recipe: Recipe) -> Conversion:
    """Read the calibration text, decide each linear's bits, plan the memory. Raises: as `convert`."""
    from edgellm.convert.budget import plan
    from edgellm.convert.job import make_job, units_for
    from edgellm.convert.survey import assign_by_budget

    calibration = None
    if recipe.method != "rtn" or recipe.average_bits is not None:
        calibration = _calibration(opened, recipe)
    elif recipe.calibration is not None and (recipe.prune is None or not recipe.prune.cuts):
        raise UsageError("rounding to nearest reads no calibration text", key="calibration", found=recipe.calibration)
    assignment = None
    if recipe.average_bits is not None:
        assignment = assign_by_budget(opened, recipe, units_for(opened.weights, recipe), calibration)
    job = make_job(opened, recipe, assignment)
    tokens = 0 if calibration is None else calibration.tokens
    limit, process = _memory_limit(recipe)
    return Conversion(opened, job, calibration, plan(job, tokens, limit, process))


@dataclass(frozen=True)
class _Run:
    """One call of `convert`."""

    opened: OpenedModel
    recipe: Recipe
    out: str | os.PathLike[str]
    account: Account
    resume: bool
    overwrite: bool
    progress: ConvertProgress | None

    def prune(self) -> Pruned:
        """What pruning leaves in the folder where the output is built."""
        from edgellm.convert.prune_stage import prune_ahead

        limit, process = _memory_limit(self.recipe)
        return prune_ahead(
            self.opened,
            self.recipe.prune,
            self.out,
            source_digest=fingerprint(self.opened.checkpoint),
            calibrate=lambda model: _calibration(model, self.recipe),
            group_size=_group_size(self.recipe),
            limit=limit,
            process_bytes=process,
            resume=self.resume,
            overwrite=self.overwrite,
            progress=self.progress,
        )

    def write_pruned(self, pruned: Pruned) -> Report:
        """The pruned checkpoint is the output."""
        from edgellm.convert.prune_stage import finish_pruned

        report = self.account.report(pruned, None)
        finish_pruned(pruned, self.out, report.as_bytes(), overwrite=self.overwrite)
        return report

    def quantize(self, model: OpenedModel, pruned: Pruned | None) -> Report:
        """Quantize `model`, the source or what pruning left of it, into the output."""
        from edgellm.convert.pipeline import run_job
        from edgellm.convert.prune_stage import ASIDE
        from edgellm.convert.report import write_report

        ready = prepare(model, self.recipe)
        digest = fingerprint(model.checkpoint)
        result = run_job(
            ready.job,
            self.out,
            calibration=ready.calibration,
            source_digest=digest if pruned is None else f"{digest} {pruned.digest}",
            budget=ready.budget,
            resume=self.resume,
            overwrite=self.overwrite,
            aside=() if pruned is None else ASIDE,
            progress=self.progress,
        )
        with planning.open_path(result.out) as made:
            self.account.measure("quantized", made, pruned)
        report = self.account.report(pruned, result)
        write_report(report, result.out)
        return report


def _calibration(opened: OpenedModel, recipe: Recipe) -> Calibration:
    from edgellm.convert.calibration import load_calibration

    length = min(recipe.sequence_length, opened.config.max_position_embeddings)
    return load_calibration(opened, recipe.calibration, sequences=recipe.sequences, length=length, seed=recipe.seed)


def _memory_limit(recipe: Recipe) -> tuple[int | None, int]:
    """(bytes the process may hold, None where nobody knows; bytes it holds already)."""
    available, process = memory.available_bytes(), memory.resident_bytes()
    limit = recipe.max_ram
    if limit is None and available is not None:
        limit = process + available - memory.reserve_bytes(available)
    return limit, process


def _group_size(recipe: Recipe) -> int | None:
    return recipe.scheme.group_size if recipe.quantizes and recipe.scheme.group_size > 0 else None

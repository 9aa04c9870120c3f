"""Pruning before quantizing: dense checkpoints aside, in the folder where the output is built, kept for a resumed run.

First the vocabulary is cut, then layers, groups and channels, on calibration tokens of the cut vocabulary. Each step
writes a whole checkpoint under its name; `prune-state.json` says from what it was made and the digest of its bytes.
What proves itself is not made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgellm._version import __version__
from edgellm.convert.calibration import Calibration
from edgellm.convert.output import staging_folder
from edgellm.convert.pipeline import Progress, check_place
from edgellm.convert.prune import prune
from edgellm.convert.prune_budget import plan_pruning
from edgellm.convert.prune_recipe import PruneRecipe
from edgellm.convert.prune_settings import PruneSettings
from edgellm.convert.report import FILE_NAME, LinearCost, pruned_costs
from edgellm.convert.state import PRUNE_FILE, clear, locked, refuse_unfinished
from edgellm.convert.vocabulary import prune_vocabulary
from edgellm.errors import EdgeLLMError, InputError, OutputError
from edgellm.formats.writer import check_free, failures, replace_folder, write_bytes
from edgellm.jsonfile import read_json
from edgellm.model import OpenedModel, open_model

_VOCABULARY, _PRUNED = "vocabulary", "pruned"
#: Names in the staging folder that are this stage's.
ASIDE = (PRUNE_FILE, _VOCABULARY, _PRUNED)
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Pruned:
    """What pruning left.

    Attributes:
        folder: the checkpoint.
        digest: of all that it was made from; the source of a conversion that follows.
        facts: for the report, JSON-able.
        linears: what cuts cost the linears behind them.
        kept_ids: ids of the source in the order of the new ones, int64, None where the vocabulary is the source's.
        resumed: steps that an earlier run had done.
        seconds: of the steps, whichever run did them.
        notes: what a person should know.
    """

    folder: Path
    digest: str
    facts: dict[str, Any]
    linears: tuple[LinearCost, ...]
    kept_ids: np.ndarray | None
    resumed: int
    seconds: float
    notes: tuple[str, ...]


def prune_ahead(
    opened: OpenedModel,
    settings: PruneSettings,
    out: str | os.PathLike[str],
    *,
    source_digest: str,
    calibrate: Callable[[OpenedModel], Calibration],
    group_size: int | None = None,
    limit: int | None = None,
    process_bytes: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Pruned:
    """Prune `opened` into the folder where `out` is built.

    Args:
        out: of the whole conversion.
        source_digest: of the source's tensors.
        calibrate: the calibration tokens of a model; not asked where the vocabulary alone is cut.
        group_size: of the quantization that follows, None without one.
        limit, process_bytes: memory that may be held, None for no limit, and what is held already.
        resume, overwrite: see `run_job`.

    Raises:
        UsageError: the settings do not fit the model. ModelError: it is quantized, or damaged.
        OutputError: see `run_job`. OutOfMemoryError: not within `limit`.
        NumericalError, TokenizerError, InputError: see `prune` and `prune_vocabulary`.
    """
    out = Path(os.path.abspath(out))
    check_place(opened, out, overwrite)
    settings.recipe(opened.config, group_size)  # before anything is written
    folder = staging_folder(out)
    if not resume and not overwrite:
        refuse_unfinished(folder)
    with locked(folder):
        stage = _Stage(folder, progress, resume=resume, overwrite=overwrite)
        digest, model = source_digest, opened
        try:
            if settings.vocabulary:
                digest = _digest_of(digest, [_file_digest(Path(path)) for path in settings.vocabulary])
                stage.step(_VOCABULARY, digest, partial(stage.cut_vocabulary, opened, settings.vocabulary))
                model = open_model(folder / _VOCABULARY)
            if settings.cuts:
                calibration = calibrate(model)
                recipe = settings.recipe(model.config, group_size)
                budget = plan_pruning(model, recipe, calibration.token_ids.shape, limit, process_bytes)
                digest = _digest_of(digest, [asdict(recipe), calibration.digest()])
                stage.step(_PRUNED, digest, partial(stage.prune, model, recipe, calibration, budget.hidden_bytes))
        except EdgeLLMError:
            if not stage.done:  # a text that is missing, too little memory: nothing was begun
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            if model is not opened:
                model.close()
        return stage.result(digest)


def finish_pruned(pruned: Pruned, out: str | os.PathLike[str], report: bytes, *, overwrite: bool) -> None:
    """Give a pruned checkpoint the name `out`, `report` in it, and remove what lay beside it. Raises `OutputError`."""
    out = Path(os.path.abspath(out))
    with failures(out), locked(staging_folder(out)):
        check_free(out, overwrite)
        (pruned.folder / FILE_NAME).write_bytes(report)
        replace_folder(pruned.folder, out)
        shutil.rmtree(staging_folder(out))


class _Stage:
    """The steps of one run, and what is known of those that are done."""

    def __init__(self, folder: Path, progress: Progress | None, *, resume: bool, overwrite: bool) -> None:
        self.folder, self.progress, self.overwrite = folder, progress, overwrite
        self.done: dict[str, dict[str, Any]] = _read_state(folder) if resume else {}
        self.resumed = 0
        self.now: list[str] = []
        if not resume:
            clear(folder)
        elif not self.done:
            self._refuse_other(bool(next(folder.glob("convert-state.json"), None)))
            clear(folder)
        with failures(folder):  # of a run that was killed
            for entry in folder.iterdir():
                if entry.is_dir() and entry.name not in ASIDE:
                    shutil.rmtree(entry)

    def step(self, name: str, identity: str, work: Callable[[Path], dict[str, Any]]) -> None:
        """Have checkpoint `name` in the folder: the one that is there if it was made from the same, else a new one."""
        self.now.append(name)
        entry = self.done.get(name)
        self._refuse_other(entry is not None and entry["identity"] != identity)
        path = self.folder / name
        if entry is not None and entry["identity"] == identity and _folder_digest(path) == entry["digest"]:
            self.resumed += 1
            return
        with failures(path):
            if path.exists():
                shutil.rmtree(path)
        facts = work(path)
        self.done[name] = {"identity": identity, "digest": _folder_digest(path), "facts": facts}
        self._save()

    def cut_vocabulary(self, opened: OpenedModel, corpus: Sequence[str], out: Path) -> dict[str, Any]:
        """The facts of a vocabulary cut into `out`."""
        self._report(0.0, 1.0, "vocabulary: reading the corpus")
        found = prune_vocabulary(opened, corpus, out)
        self._report(1.0, 1.0, "vocabulary")
        return {**vars(found), "kept_ids": found.kept_ids.tolist()}

    def prune(
        self, model: OpenedModel, recipe: PruneRecipe, calibration: Calibration, room: int, out: Path
    ) -> dict[str, Any]:
        """The facts of a pruning into `out`."""
        found = prune(
            model, recipe, calibration.token_ids, out, scratch=self.folder, max_memory=room,
            progress=lambda done, total: self._report(float(done), float(total), "pruning"),
        )  # fmt: skip
        facts = found.as_dict()
        facts["notes"] = [*calibration.notes, *found.notes, *_unchanged(found.as_dict(), recipe, model)]
        return {**facts, "costs": [asdict(cost) for cost in pruned_costs(found)]}

    def result(self, digest: str) -> Pruned:
        """What the steps of this run left."""
        facts = {name: dict(self.done[name]["facts"]) for name in self.now}
        kept = facts.get(_VOCABULARY, {}).pop("kept_ids", None)
        pruned = facts.get(_PRUNED, {})
        costs = pruned.pop("costs", [])
        notes = list(pruned.pop("notes", []))
        if kept is not None:
            cut = facts[_VOCABULARY]
            notes.insert(0, f"the vocabulary has {cut['kept']:,} of {cut['of']:,} ids; ids are numbered anew")
        told = {**pruned, **({_VOCABULARY: facts[_VOCABULARY]} if kept is not None else {})}
        return Pruned(
            folder=self.folder / self.now[-1],
            digest=digest,
            facts=told,
            linears=tuple(LinearCost(**cost) for cost in costs),
            kept_ids=None if kept is None else np.array(kept, np.int64),
            resumed=self.resumed,
            seconds=float(pruned.get("seconds", 0.0)),
            notes=tuple(notes),
        )

    def _refuse_other(self, other: bool) -> None:
        if other and not self.overwrite:
            hint = "Give the same options and files as before, or --overwrite to begin anew."
            raise OutputError("is unfinished from another source or recipe", file=self.folder, hint=hint)

    def _save(self) -> None:
        path = self.folder / PRUNE_FILE
        aside = self.folder / f"{PRUNE_FILE}.new"
        with failures(path):
            write_bytes(aside, [json.dumps({"version": __version__, "steps": self.done}).encode()])
            os.replace(aside, path)

    def _report(self, done: float, total: float, label: str) -> None:
        if self.progress is not None:
            self.progress(done, total, label)


def _unchanged(facts: dict[str, Any], recipe: PruneRecipe, model: OpenedModel) -> list[str]:
    """Notes about what was asked for and rounded to nothing."""
    config = model.config
    notes = []
    if recipe.narrows and all(entry["channels"] == config.mlp_width(entry["layer"]) for entry in facts["layers"]):
        notes.append(f"no MLP channel went: the nearest multiple of {recipe.ffn_multiple} is the width there was")
    if recipe.kv_groups and recipe.kept_groups(config) == config.num_key_value_heads:
        notes.append(f"no KV head went: the share is less than half of one in {config.num_key_value_heads}")
    return notes


def _read_state(folder: Path) -> dict[str, dict[str, Any]]:
    """Steps that an earlier run had done; none where the state is missing, damaged or of another version."""
    try:
        values = read_json(folder / PRUNE_FILE)
        steps = values["steps"]
        if values["version"] != __version__ or not all(
            {"identity", "digest", "facts"} <= set(entry) for entry in steps.values()
        ):
            return {}
        return dict(steps)
    except (EdgeLLMError, KeyError, AttributeError, TypeError):
        return {}


def _digest_of(source: str, facts: Any) -> str:
    return hashlib.sha256(json.dumps([source, facts], sort_keys=True).encode()).hexdigest()


def _folder_digest(folder: Path) -> str:
    """sha256 of the files of a checkpoint, "" where there is none; a report in it does not count."""
    if not folder.is_dir():
        return ""
    digests = {path.name: _file_digest(path) for path in sorted(folder.iterdir()) if path.name != FILE_NAME}
    return _digest_of("", digests)


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from None
    return digest.hexdigest()

"""A distillation from first to last: reduce, heal, train, write."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.convert.distill.heal import Healed, Healer
from edgellm.convert.distill.listener import Listener
from edgellm.convert.distill.matching import match_channels, match_layers
from edgellm.convert.distill.network import Network
from edgellm.convert.distill.output import write_model
from edgellm.convert.distill.plan import MemoryPlan, plan_memory
from edgellm.convert.distill.quality import Quality, measure
from edgellm.convert.distill.reduce import Model, reduce
from edgellm.convert.distill.reduction import Kept, Reduction, choose, collect, sketch
from edgellm.convert.distill.settings import DTYPES, Settings
from edgellm.convert.distill.sources import Sources, open_sources
from edgellm.convert.distill.state import state_path
from edgellm.convert.distill.student_config import read_values, reduced_values
from edgellm.convert.distill.texts import Rows, cut_rows, encode_texts
from edgellm.convert.distill.train import Trainer
from edgellm.errors import NumericalError, OutputError, UsageError
from edgellm.model.program import Program, build_program
from edgellm.sidefiles import read_side_json

REPORT_FILE = "distill_report.json"


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        student: a checkpoint. out: the folder to write.
        texts: files to learn from.
        teacher: a checkpoint; None makes the student from itself by `reduction`.
        reduction: applied to the student first.
        dtype: of the written weights; None: as the student's embedding is stored.
        overwrite: replace `out`. resume: go on from the state of an interrupted run.
        dry_run: end after a step was measured; nothing is healed, trained or written.
    """

    student: str | os.PathLike[str]
    out: str | os.PathLike[str]
    texts: Sequence[str | os.PathLike[str]]
    teacher: str | os.PathLike[str] | None = None
    reduction: Reduction = field(default_factory=Reduction)
    dtype: str | None = None
    overwrite: bool = False
    resume: bool = False
    dry_run: bool = False


def distill(
    job: Job, settings: Settings, *, available_bytes: int | None = None, listener: Listener | None = None
) -> dict[str, Any]:
    """Make and repair a student, and write it as a Hugging Face folder with its report.

    Args:
        available_bytes: memory that may be used; None is not checked.
        listener: hears how it goes.

    Returns:
        The report, for JSON: parameters, memory, quality on held-out text cut, healed and trained, blocks, history.

    Raises:
        UsageError, InputError, ModelError, TokenizerError, TemplateError: what was asked for cannot be.
        OutOfMemoryError: it does not fit; nothing was read.
        NumericalError: training diverged; the last good state is kept.
        OutputError: the output or the state cannot be written.
    """
    start = time.monotonic()
    listener = listener or Listener()
    if not job.reduction and job.teacher is None:
        hint = "Name a --teacher, or make the student smaller with --layers, --hidden-size, ..."
        raise UsageError("a model that is its own teacher has nothing to learn", key="--teacher", hint=hint)
    _check_out(job)
    with open_sources(job.student, job.teacher) as sources:
        rows = _read_rows(job, sources, settings)
        program = _planned_program(job, sources)
        tokens = rows.train.size + rows.held_out.size
        plan = plan_memory(program, sources.teacher.weights.program, settings, tokens)
        listener.memory(plan)
        plan.require(available_bytes)
        dtype = job.dtype or _stored_dtype(sources)
        made = _Run(job, settings, sources, rows, listener)
        report = made.run(plan)
        report |= {"dtype": dtype, "seconds": time.monotonic() - start}
        if job.dry_run:
            return report
        listener.phase("writing")
        extra = {REPORT_FILE: json.dumps(report, indent=2, allow_nan=False).encode() + b"\n"}
        write_model(made.student, sources.student.side_files, job.out, dtype, extra, job.overwrite)
    state_path(job.out).unlink(missing_ok=True)
    return report


class _Run:
    def __init__(self, job: Job, settings: Settings, sources: Sources, rows: Rows, listener: Listener) -> None:
        self.job, self.settings, self.rows, self.listener = job, settings, rows, listener
        listener.phase("reading")
        source, self.teacher = sources.read()
        self.file = sources.student.side_files.locate("config.json")
        self.same = sources.same
        self.identity = _identity(job, settings, rows, source, self.teacher)
        self.student, self.kept = self._reduced(source)
        self.facts: dict[str, Any] = {}

    def run(self, plan: MemoryPlan) -> dict[str, Any]:
        """Heal and train; the report."""
        settings, listener = self.settings, self.listener
        networks = [Network(model.program, model.parameters, settings.length) for model in (self.student, self.teacher)]
        student, teacher = networks
        trainer = Trainer(student, teacher, self.rows, settings, state_path(self.job.out), self.identity)
        if self.job.resume:
            trainer.resume()
            self.facts = dict(trainer.found)
            listener.note(f"going on after step {trainer.step}")
        else:
            self._begin(trainer)
        predicted = _prediction(settings, trainer.step, trainer.seconds_a_step())
        listener.predicted(predicted)
        training = {} if self.job.dry_run else {"training": self._train(trainer)}
        return {
            "student": _sizes(self.student),
            "teacher": _sizes(self.teacher),
            "settings": asdict(settings),
            "memory": plan.as_dict(),
            "tokens": {"train": self.rows.train[:, 1:].size, "held_out": self.rows.held_out[:, 1:].size},
            **self.facts,
            "history": trainer.history,
            "predicted": predicted,
            **training,
        }

    def _begin(self, trainer: Trainer) -> None:
        """Measure, heal, and save what training begins with."""
        student, teacher = trainer.student, trainer.teacher
        self._quality("teacher", teacher, teacher)
        self._quality("cut", student, teacher)
        if self.job.dry_run:
            return
        if self.settings.heal != "none":
            self._heal(student, teacher)
        trainer.found = self.facts
        trainer.save()

    def _train(self, trainer: Trainer) -> dict[str, Any]:
        """All steps; what they took."""
        settings = self.settings
        self.listener.phase("training")
        began, first = time.monotonic(), trainer.step
        trainer.run(self.listener.step)
        took = time.monotonic() - began
        if settings.steps:
            self._quality("trained", trainer.student, trainer.teacher)
        trained = (trainer.step - first) * settings.batch_size * settings.length
        return {"steps": trainer.step, "seconds": took, "tokens_per_second": trained / max(took, 1e-9)}

    def _reduced(self, source: Model) -> tuple[Model, Kept | None]:
        """The student to begin with, weights of its own."""
        if not self.job.reduction:
            return source, None
        self.listener.phase("reducing")
        network = Network(source.program, source.parameters, self.settings.length)
        found = collect(network, self.rows.train[: self.settings.heal_rows, :-1], self.settings.rows_at_once)
        kept = choose(source.program, source.parameters, self.job.reduction, found)
        return reduce(source, kept, found, self.file), kept

    def _heal(self, student: Network, teacher: Network) -> None:
        places = self._places()
        if places is None:
            self.listener.note("no block-by-block repair: which of the teacher's layers these are cannot be seen")
            return
        self.listener.phase("healing")
        rows = self.rows.train[: self.settings.heal_rows]
        blocks: list[Healed] = Healer(student, teacher, *places, rows, self.settings).run(self.listener.block)
        self.facts["blocks"] = [block.as_dict() for block in blocks]
        self._quality("healed", student, teacher)

    def _places(self) -> tuple[tuple[int, ...], np.ndarray] | None:
        """The teacher's layer and channel of each of the student's."""
        if self.same and self.kept is not None:
            return self.kept.layers, self.kept.channels
        channels = match_channels(self.student, self.teacher)
        layers = None if channels is None else match_layers(self.student, self.teacher, channels)
        return None if layers is None or channels is None else (layers, channels)

    def _quality(self, name: str, student: Network, teacher: Network) -> Quality:
        self.listener.phase("measuring")
        found = measure(student, teacher, self.rows.held_out, self.settings.rows_at_once)
        if name == "trained" and not np.isfinite(found.nll):
            raise NumericalError("the trained model's logits are not finite", key="held-out text")
        self.facts.setdefault("quality", {})[name] = found.as_dict()
        self.listener.quality(name, found)
        return found


def _check_out(job: Job) -> None:
    """Raises `OutputError`, `UsageError` before hours are spent."""
    out, state = Path(job.out), state_path(job.out)
    for source in (job.student, job.teacher):
        if source is not None and os.path.realpath(source) == os.path.realpath(out):
            raise OutputError("is a model that is read", file=out, hint="Choose another name for the output.")
    if os.path.lexists(out) and not job.overwrite and not (out.is_dir() and not any(out.iterdir())):
        raise OutputError("is there already", file=out, hint="Choose another name, or ask to overwrite it.")
    if state.exists() and not job.resume and not job.overwrite:
        hint = "Go on with --resume, or begin anew with --overwrite."
        raise OutputError("the state of an interrupted run is there", file=state, hint=hint)
    if not out.absolute().parent.is_dir():
        raise OutputError("the folder to write into is missing", file=out.absolute().parent)


def _read_rows(job: Job, sources: Sources, settings: Settings) -> Rows:
    longest = min(model.config.max_position_embeddings for model in (sources.student, sources.teacher))
    if settings.length > longest:
        raise UsageError("longer than the models' context", key="--length", found=settings.length, allowed=str(longest))
    ids = encode_texts(sources.student, job.texts)
    return cut_rows(ids, settings.length, settings.held_out, settings.most_held_out)


def _planned_program(job: Job, sources: Sources) -> Program:
    """A program of the student's sizes; which layers and channels it will have is not known yet."""
    program = sources.student.weights.program
    if not job.reduction:
        return program
    kept = sketch(program.config, job.reduction)
    values = reduced_values(_values(sources), program.config, kept)
    return build_program(read_values(values, sources.student.side_files.locate("config.json")))


def _values(sources: Sources) -> dict[str, Any]:
    return read_side_json(sources.student.side_files, "config.json") or {}


def _stored_dtype(sources: Sources) -> str:
    stored = sources.student.weights.stored_dtype("embed_tokens")
    return next((name for name, key in DTYPES.items() if key == stored), "float32")


def _identity(job: Job, settings: Settings, rows: Rows, source: Model, teacher: Model) -> str:
    """sha256 of all that decides the result."""
    facts = {"settings": settings.identity(), "reduction": asdict(job.reduction), "source": source.parameters.digest()}
    facts |= {"teacher": teacher.parameters.digest(), "values": dict(source.values)}
    text = hashlib.sha256(np.ascontiguousarray(rows.train)).hexdigest()
    return hashlib.sha256(json.dumps([facts, text], sort_keys=True).encode()).hexdigest()


def _sizes(model: Model) -> dict[str, int]:
    config = model.program.config
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    return {"parameters": model.parameters.count, **{key: getattr(config, key) for key in keys}}


def _prediction(settings: Settings, done: int, seconds: float) -> dict[str, Any]:
    left = settings.steps - done
    rate = settings.batch_size * settings.length / max(seconds, 1e-9)
    return {"steps": left, "seconds_a_step": seconds, "tokens_per_second": rate, "seconds": left * seconds}

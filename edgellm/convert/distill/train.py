"""Logit distillation: the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.convert.distill.loss import Sums, loss_and_gradient
from edgellm.convert.distill.network import Network, Step, sequences
from edgellm.convert.distill.optimizer import AdamW, Schedule, clip
from edgellm.convert.distill.quality import measure
from edgellm.convert.distill.settings import Settings
from edgellm.convert.distill.state import Saved, load_state, save_state
from edgellm.convert.distill.texts import Rows, batch_rows
from edgellm.errors import NumericalError


@dataclass(frozen=True)
class Progress:
    """After a step.

    Attributes:
        step, steps: how many are done of how many.
        loss: of this one.
        seconds: since the loop began, in which `steps_here` were made.
        measured: on held-out text after this step, a row of `Trainer.history`; None where nothing was.
    """

    step: int
    steps: int
    loss: float
    seconds: float
    steps_here: int
    measured: dict[str, Any] | None = None


@dataclass
class Trainer:
    """Trains every weight of `student` in place towards the teacher's logits.

    Attributes:
        path: of the state; None saves nothing.
        identity: of the run, see `state`.
        history: what was measured, a row a measurement.
        found: kept in the state for the report.
    """

    student: Network
    teacher: Network
    rows: Rows
    settings: Settings
    path: Path | None = None
    identity: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings, parameters = self.settings, self.student.parameters
        self.optimizer = AdamW(parameters.arrays, weight_decay=settings.weight_decay)
        self.schedule = Schedule(settings.learning_rate, settings.steps, math.ceil(settings.steps * settings.warmup))
        self._grads = parameters.zeros()
        self.step = 0

    def resume(self) -> None:
        """Go on from the state. Raises as `load_state`."""
        saved = load_state(self.path, self.identity, self.student.parameters, self.optimizer)
        self.step, self.found = saved.step, dict(saved.found)
        self.history = list(self.found.pop("history", []))

    def save(self) -> None:
        """Write the state."""
        if self.path is not None:
            saved = Saved(self.step, {**self.found, "history": self.history})
            save_state(self.path, self.identity, self.student.parameters, self.optimizer, saved)

    def seconds_a_step(self) -> float:
        """A step's time, from one micro-batch that changes nothing; the second of two, for the first one warms up."""
        taken = 0.0
        for _ in range(2):
            start = time.perf_counter()
            self._micro_batch(self.rows.train[: self.settings.rows_at_once])
            taken = time.perf_counter() - start
        self._clear()
        return taken * self.settings.batch_size / min(self.settings.rows_at_once, len(self.rows.train))

    def run(self, progress: Callable[[Progress], None] | None = None) -> None:
        """All steps that are left.

        Raises:
            NumericalError: the loss or a gradient is not finite; the weights of the last saved state are untouched.
            OutputError: the state cannot be written.
        """
        settings = self.settings
        start = saved = time.monotonic()
        first = self.step
        while self.step < settings.steps:
            loss = self._step()
            self.step += 1
            measured = None
            if self.step % settings.eval_every == 0 or self.step == settings.steps:
                measured = self._measure(loss)
            if time.monotonic() - saved >= settings.save_seconds or self.step == settings.steps:
                self.save()
                saved = time.monotonic()
            if progress is not None:
                here, seconds = self.step - first, time.monotonic() - start
                progress(Progress(self.step, settings.steps, loss, seconds, here, measured))

    def _step(self) -> float:
        settings, total = self.settings, Sums()
        chosen = self.rows.train[batch_rows(len(self.rows.train), settings.batch_size, self.step, settings.seed)]
        for first in range(0, len(chosen), settings.rows_at_once):
            total.add(self._micro_batch(chosen[first : first + settings.rows_at_once]))
        loss, norm = total.loss(settings.temperature, settings.alpha), clip(self._grads, settings.clip)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise NumericalError(
                "the loss or a gradient is NaN or infinite",
                key=f"step {self.step}",
                found=f"loss {loss:g}, gradient {norm:g}",
                hint="What was saved before is kept: go on with --resume and a lower --learning-rate.",
            )
        self.optimizer.step(self._grads, self.schedule.at(self.step))
        self._clear()
        return loss

    def _micro_batch(self, rows: np.ndarray) -> Sums:
        """Add the gradients of some rows."""
        settings = self.settings
        ids, targets = sequences(rows[:, :-1]), sequences(rows[:, 1:])
        tape: list[Step] = []
        with np.errstate(all="ignore"):  # what is not finite travels to the loss, which is judged
            teacher_h = self.teacher.forward(self.teacher.body, {"token_ids": ids})["h"]
            h = self.student.forward(self.student.body, {"token_ids": ids}, tape)["h"]
            scale = 1.0 / (settings.batch_size * settings.length)
            found, g = loss_and_gradient(
                self.student,
                h,
                self.teacher,
                teacher_h,
                targets,
                settings.temperature,
                settings.alpha,
                scale,
                self._grads,
            )
            self.student.backward(tape, {"h": g}, self._grads)
        return found

    def _clear(self) -> None:
        for grad in self._grads.values():
            grad.fill(0)

    def _measure(self, loss: float) -> dict[str, Any]:
        quality = measure(self.student, self.teacher, self.rows.held_out, self.settings.rows_at_once)
        self.history.append({"step": self.step, "loss": loss, **quality.as_dict()})
        return self.history[-1]

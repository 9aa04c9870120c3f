"""Block-by-block repair: each block of the student is fitted to give the hidden states that the teacher's have there.

The student's blocks run one after the other on what the repaired ones before give, so that each also makes up for
errors made before it. Where layers are missing, a block's target is the teacher's state in front of the student's next
block. First the two projections that write into the residual stream, by least squares; then gradient steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.convert.distill.network import Arrays, Network, Step, sequences
from edgellm.convert.distill.optimizer import AdamW, Schedule, clip
from edgellm.convert.distill.settings import Settings
from edgellm.convert.distill.texts import batch_rows
from edgellm.convert.distill.trainable import Scales
from edgellm.convert.hessian import Hessian
from edgellm.convert.refit import refit
from edgellm.errors import NumericalError
from edgellm.model.program import Op

#: Called with (blocks done, blocks in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Healed:
    """Of one block: the teacher's layer in its place, and the share of the target's square that is off."""

    layer: int
    teacher_layer: int
    error_before: float
    error_after_least_squares: float
    error_after: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


class Healer:
    """Repairs the blocks of `student` in place.

    Args:
        student, teacher: networks over rows of one length.
        layers: the teacher's layer of each of the student's. channels: the teacher's hidden channel of each.
        rows: int32 [N, T + 1]; the targets' column is not read.
        settings: see there.
    """

    def __init__(
        self,
        student: Network,
        teacher: Network,
        layers: tuple[int, ...],
        channels: np.ndarray,
        rows: np.ndarray,
        settings: Settings,
    ) -> None:
        self.student, self.teacher = student, teacher
        self.layers, self.channels = layers, channels
        self.ids = [
            sequences(rows[i : i + settings.rows_at_once, :-1]) for i in range(0, len(rows), settings.rows_at_once)
        ]
        self.settings = settings

    def run(self, progress: Progress | None = None) -> list[Healed]:
        """Repair every block, the first first. Raises `NumericalError` where hidden states are not finite."""
        mine = [self.student.forward(self.student.first, {"token_ids": ids})["x"] for ids in self.ids]
        theirs = [self.teacher.forward(self.teacher.first, {"token_ids": ids})["x"] for ids in self.ids]
        done, count = 0, self.teacher.config.num_hidden_layers
        found = []
        for layer, place in enumerate(self.layers):
            last = self.layers[layer + 1] if layer + 1 < len(self.layers) else count
            middle: list[np.ndarray] = []
            for index in range(done, last):
                ops = self.teacher.layer_ops(index)
                if index == place:
                    theirs, middle = self._teacher_block(ops, theirs)
                else:
                    theirs = [self.teacher.forward(ops, {"x": x})["x"] for x in theirs]
            done = last
            targets = [x[:, self.channels] for x in theirs]
            found.append(self._heal(layer, mine, middle, targets))
            mine = [self.student.forward(self.student.layer_ops(layer), {"x": x})["x"] for x in mine]
            if progress is not None:
                progress(layer + 1, len(self.layers))
        return found

    def _teacher_block(self, ops: tuple[Op, ...], xs: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The states out of a block, and those between its two branches in the student's channels."""
        cut = _end_of_attention(ops)
        after = [self.teacher.forward(ops[:cut], {"x": x})["x"] for x in xs]
        middle = [x[:, self.channels] for x in after]
        return [self.teacher.forward(ops[cut:], {"x": x})["x"] for x in after], middle

    def _heal(self, layer: int, xs: list[np.ndarray], middle: list[np.ndarray], targets: list[np.ndarray]) -> Healed:
        ops = self.student.layer_ops(layer)
        before = self._error(ops, xs, targets)
        if not np.isfinite(before):
            raise NumericalError("hidden states are not finite", key=f"layer {layer}")
        kept = self._copy(layer)
        error = before
        if not self.student.config.post_norms:  # else a norm stands between the projection and the residual stream
            cut = _end_of_attention(ops)
            self._fit(ops[:cut], xs, middle)
            self._fit(ops[cut:], [self.student.forward(ops[:cut], {"x": x})["x"] for x in xs], targets)
            error = self._keep_better(layer, ops, xs, targets, kept, before)
        fitted = error
        if self.settings.heal != "lstsq" and self.settings.heal_steps:
            kept = self._copy(layer)
            self._descend(layer, ops, xs, targets)
            error = self._keep_better(layer, ops, xs, targets, kept, fitted)
        return Healed(layer, self.layers[layer], before, fitted, error)

    def _fit(self, ops: tuple[Op, ...], xs: list[np.ndarray], targets: list[np.ndarray]) -> None:
        """The last linear of a branch re-fitted to what it should write for `targets` behind the branch."""
        op = [op for op in ops if op.kind == "linear"][-1]
        name, multiplier = op.weights[0], np.float32(ops[-1].attributes.get("multiplier", 1.0))
        weight = self.student.parameters[name]
        hessian, cross = Hessian(weight.shape[1], name), np.zeros(weight.shape[::-1])
        inputs: list[np.ndarray] = []

        def tap(at: Op, buffers: Arrays) -> None:
            if at is op:
                inputs.append(buffers[op.inputs[0]])

        for x, target in zip(xs, targets, strict=True):
            out = self.student.forward(ops, {"x": x}, tap=tap)["x"]
            read = inputs.pop()
            hessian.add(read)
            cross += read.T @ ((target - out) / multiplier + read @ weight.T)
        weight[...] = refit(weight, hessian.matrix(), np.arange(weight.shape[1]), cross=cross)

    def _descend(self, layer: int, ops: tuple[Op, ...], xs: list[np.ndarray], targets: list[np.ndarray]) -> None:
        """Gradient steps on the mean square error, relative to the target's variance."""
        settings, parameters = self.settings, self.student.parameters
        names = parameters.of_layer(layer)
        scales = Scales(parameters, names) if settings.heal == "scales" else None
        trained = {name: parameters.arrays[name] for name in names} if scales is None else scales.arrays
        optimizer = AdamW(trained)
        # factors near one may move in smaller steps than weights of any size
        schedule = Schedule(settings.heal_learning_rate, settings.heal_steps, settings.heal_steps // 10)
        grads = parameters.zeros(names)
        variance = float(np.mean([np.mean(np.square(target)) for target in targets]))
        for step in range(settings.heal_steps):
            number = int(batch_rows(len(xs), 1, step, settings.seed)[0])
            tape: list[Step] = []
            g = self.student.forward(ops, {"x": xs[number]}, tape)["x"] - targets[number]
            g *= 2 / (g.size * variance)
            self.student.backward(tape, {"x": g}, grads)
            wanted = grads if scales is None else scales.gradients(grads)
            clip(wanted, settings.clip)
            optimizer.step(wanted, schedule.at(step))
            if scales is not None:
                scales.apply()
            for grad in grads.values():
                grad.fill(0)

    def _copy(self, layer: int) -> Arrays:
        arrays = self.student.parameters.arrays
        return {name: arrays[name].copy() for name in self.student.parameters.of_layer(layer)}

    def _keep_better(
        self,
        layer: int,
        ops: tuple[Op, ...],
        xs: list[np.ndarray],
        targets: list[np.ndarray],
        kept: Arrays,
        error: float,
    ) -> float:
        """The error now, or, where it was better before, that one with the arrays it belongs to."""
        now = self._error(ops, xs, targets)
        if now < error:
            return now
        for name, array in kept.items():
            self.student.parameters.arrays[name][...] = array
        return error

    def _error(self, ops: tuple[Op, ...], xs: list[np.ndarray], targets: list[np.ndarray]) -> float:
        """Sum of squares that the block's output is off, over the target's."""
        off = total = 0.0
        for x, target in zip(xs, targets, strict=True):
            difference = self.student.forward(ops, {"x": x})["x"] - target
            off += float(np.vdot(difference, difference))
            total += float(np.vdot(target, target))
        return off / max(total, 1e-30)


def _end_of_attention(ops: tuple[Op, ...]) -> int:
    """How many ops of a block stand before its MLP branch: up to the first that adds to the residual stream."""
    return next(i for i, op in enumerate(ops) if "x" in op.outputs) + 1

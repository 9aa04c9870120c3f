"""AdamW (Loshchilov and Hutter, arXiv:1711.05101), its learning rate over time, and clipping by the global norm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Schedule:
    """Linear warmup from 0 to `peak`, then half a cosine down to `peak * last`.

    Attributes:
        peak: the highest learning rate.
        steps: all steps; warmup: those of them that rise.
        last: share of the peak at the end.
    """

    peak: float
    steps: int
    warmup: int
    last: float = 0.1

    def at(self, step: int) -> float:
        """The learning rate of step 0, 1 ..."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.peak * (self.last + (1 - self.last) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


class AdamW:
    """Moments of the arrays that are trained, and the step.

    Args:
        arrays: what is trained; written to in place.
        betas, eps: of Adam.
        weight_decay: of matrices; vectors (norms, biases, scales) are not decayed.

    Attributes:
        mean, square: the moments, by name.
        count: steps made.
    """

    def __init__(
        self, arrays: Arrays, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        self.arrays = arrays
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.mean = {name: np.zeros_like(array) for name, array in arrays.items()}
        self.square = {name: np.zeros_like(array) for name, array in arrays.items()}
        self.count = 0

    def step(self, grads: Arrays, rate: float) -> None:
        """Move every array against its gradient; the gradients are used up."""
        self.count += 1
        first, second = self.betas
        rate_of_mean = rate / (1 - first**self.count)
        correction = 1 / math.sqrt(1 - second**self.count)
        for name, array in self.arrays.items():
            g, mean, square = grads[name], self.mean[name], self.square[name]
            mean *= first
            mean += (1 - first) * g
            square *= second
            g *= g
            g *= 1 - second
            square += g
            np.sqrt(square, out=g)
            g *= correction
            g += self.eps
            np.divide(mean, g, out=g)
            g *= rate_of_mean
            if self.weight_decay and array.ndim > 1:
                array *= 1 - rate * self.weight_decay
            array -= g


def clip(grads: Arrays, limit: float) -> float:
    """Scale all gradients so that their common norm is at most `limit`; the norm before, NaN or infinity as it is."""
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
    if math.isfinite(norm) and norm > limit:
        for g in grads.values():
            g *= limit / norm
    return norm

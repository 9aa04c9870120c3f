"""How a backend is compared with the reference, and what its everyday precision costs: two questions, two answers.

Whether kernels are right is asked of a backend that rounds as little as it can: then it differs from the reference by
rounding in 16 bits and a bound can be tight. What it stores and computes in fewer bits by default is a choice, not an
error; how far that moves the logits depends on the model, so it is stated and not bounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from edgellm.formats import QuantizedTensor
    from edgellm.model import Weights

_ROWS = 4096


@dataclass(frozen=True)
class Exact:
    """A backend at its most exact.

    Attributes:
        options: of its `load`.
        half: whether it stores weights that are not quantized in float16.
        bound: the error allowed, as `tracing.error_of` counts it, where no weight is quantized: float32 arithmetic.
        quantized_bound: the error allowed where some are, and so the activations that meet them, for a model of one
            layer: rounding adds up over layers as a random walk does.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    half: bool = False
    bound: float = 1e-4
    quantized_bound: float = 0.0

    def bound_for(self, layers: int, quantized: bool) -> float:
        """The error allowed for a model of so many layers."""
        return max(self.bound, self.quantized_bound * math.sqrt(layers) * quantized)


_EXACT = {
    "reference": Exact(),
    # Activations of prompts are float16 in products, keys and values in the cache
    "cuda": Exact({"lm_head": "keep"}, half=True, bound=3e-2, quantized_bound=2e-2),
    "cpu": Exact({"lm_head": "keep", "activations": "int16"}, half=True, bound=1e-4, quantized_bound=5e-3),
}


def exact(backend: str) -> Exact:
    """How the backend of that name is compared."""
    return _EXACT.get(backend, Exact(bound=1e-3, quantized_bound=5e-3))


class HalfWeights:
    """Weights whose unquantized matrices are rounded to float16, as a backend stores them that has `Exact.half`.

    Attributes:
        changed: whether that changed any value so far.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.changed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._weights, name)

    def embedding(self) -> np.ndarray:
        """float32 [vocab_size, hidden_size]."""
        return self._rounded(self._weights.embedding())

    def linear(self, name: str) -> QuantizedTensor | np.ndarray:
        """As `Weights.linear`."""
        weight = self._weights.linear(name)
        return self._rounded(weight) if isinstance(weight, np.ndarray) else weight

    def _rounded(self, weight: np.ndarray) -> np.ndarray:
        largest = np.max(np.abs(weight), initial=0.0)
        if not np.isfinite(largest):
            return weight
        factor = _half_factor(weight.shape, float(largest))
        rounded = np.empty_like(weight)
        for first in range(0, len(weight), _ROWS):  # piece by piece: a whole embedding once more is much memory
            part = weight[first : first + _ROWS]
            rounded[first : first + _ROWS] = (part / factor).astype(np.float16).astype(np.float32) * factor
            self.changed = self.changed or not np.array_equal(rounded[first : first + _ROWS], part)
        return rounded


def _half_factor(shape: tuple[int, ...], largest: float) -> np.float32:
    """What the CPU backend divides a weight [rows, inputs] by before it becomes float16."""
    from edgellm.backends.cpu.packing import dense_factor, factor_fits, plan_linear

    layout = plan_linear(*shape, 16)
    return np.float32(dense_factor(layout) if factor_fits(largest) else dense_factor(layout, largest))


@dataclass(frozen=True)
class Cost:
    """What less precision did to the logits of T tokens.

    Attributes:
        name: of the run.
        tokens: T.
        logit_error: |b - a| / |a|, Euclidean norms over all logits.
        same_top1: share of tokens whose likeliest successor stayed the same.
        kl_nats: mean Kullback-Leibler divergence of the next token's distribution from the reference's.
    """

    name: str
    tokens: int
    logit_error: float
    same_top1: float
    kl_nats: float

    @classmethod
    def of(cls, name: str, expected: np.ndarray, found: np.ndarray) -> Cost:
        """From logits float32 [T, vocab_size] of the reference and of the run."""
        from edgellm.engine.sampler import log_softmax

        p, q = log_softmax(expected), log_softmax(found)
        return cls(
            name,
            len(expected),
            float(np.linalg.norm(found - expected) / np.linalg.norm(expected)),
            float(np.mean(expected.argmax(axis=1) == found.argmax(axis=1))),
            float(np.mean(np.sum(np.exp(p) * (p - q), axis=1))),
        )

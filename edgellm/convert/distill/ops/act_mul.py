"""act_mul: out = act(gate) * up (GLU variants, arXiv:2002.05202)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Curve = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def forward(gate: np.ndarray, up: np.ndarray, act: str) -> np.ndarray:
    """gate, up [B * T, D]."""
    value, _ = CURVES[act](gate)
    value *= up
    return value


def backward(g: np.ndarray, gate: np.ndarray, up: np.ndarray, act: str) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of gate and up. The curve is computed anew: keeping it would cost two more buffers a layer."""
    value, slope = CURVES[act](gate)
    value *= g
    slope *= g
    slope *= up
    return slope, value


def _silu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x * s and s * (1 + x * (1 - s)) with s = sigmoid(x)."""
    with np.errstate(over="ignore"):  # exp(-x) = inf for x < -88: 1 / inf is the right limit, 0
        s = np.exp(-x)
    s += 1
    np.reciprocal(s, out=s)
    value = x * s
    slope = x - value
    slope += 1
    slope *= s
    return value, slope


def _gelu_tanh(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    t = np.tanh(a * x * (1 + b * square))
    half = 0.5 * (1 + t)
    return x * half, half + 0.5 * x * (1 - t * t) * a * (1 + 3 * b * square)


def _gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    erf = np.frompyfunc(math.erf, 1, 1)(x * (1 / math.sqrt(2))).astype(x.dtype)
    below = 0.5 * (1 + erf)
    return x * below, below + x * np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


#: An activation's value and slope.
CURVES: dict[str, Curve] = {"silu": _silu, "gelu": _gelu, "gelu_pytorch_tanh": _gelu_tanh}

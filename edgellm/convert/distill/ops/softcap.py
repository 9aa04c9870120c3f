"""softcap: y = cap * tanh(x / cap)."""

from __future__ import annotations

import numpy as np


def forward(x: np.ndarray, cap: float | None) -> np.ndarray:
    """x of any shape, returned as it is where there is no cap."""
    if cap is None:
        return x
    y = np.tanh(x / float(cap))
    y *= float(cap)
    return y


def backward(g: np.ndarray, y: np.ndarray, cap: float | None) -> np.ndarray:
    """The gradient of x from the output y: g * (1 - (y / cap)^2)."""
    return g if cap is None else g * (1 - np.square(y / float(cap)))

"""add: x = x + multiplier * y."""

from __future__ import annotations

import numpy as np


def forward(x: np.ndarray, y: np.ndarray, multiplier: float) -> np.ndarray:
    """x, y [B * T, D]."""
    return x + (y if multiplier == 1.0 else y * float(multiplier))


def backward(g: np.ndarray, multiplier: float) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of x and y."""
    return g, (g if multiplier == 1.0 else g * float(multiplier))

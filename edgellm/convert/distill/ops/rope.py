"""rope: the first elements of each head turned to their position, rotate-half pairing."""

from __future__ import annotations

import numpy as np


def forward(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x [B, T, H, Hd]; cos, sin [T, rotary_dim / 2]."""
    half = cos.shape[1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = x.copy()
    first, second = x[..., :half], x[..., half : 2 * half]
    turned[..., :half] = first * cos - second * sin
    turned[..., half : 2 * half] = second * cos + first * sin
    return turned


def backward(g: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """The gradient of x: a rotation's transpose turns back."""
    return forward(g, cos, -sin)

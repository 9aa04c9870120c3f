"""rms_norm: out = x / sqrt(mean(x^2) + eps) * (offset + weight), over the row or over runs of `group` elements."""

from __future__ import annotations

import math

import numpy as np

Saved = tuple[np.ndarray, np.ndarray]


def forward(
    x: np.ndarray, weight: np.ndarray, eps: float, offset: float, group: int | None = None
) -> tuple[np.ndarray, Saved]:
    """x [B * T, D]; weight [group or D]. Keeps the normalized rows and the factors that made them."""
    grouped = x.reshape(len(x), -1, group or x.shape[1])  # (B * T, D / group, group)
    factor = np.einsum("tng,tng->tn", grouped, grouped)[..., None]
    factor /= grouped.shape[-1]
    factor += float(eps)
    np.sqrt(factor, out=factor)
    np.reciprocal(factor, out=factor)
    normalized = grouped * factor
    return (normalized * (weight + float(offset))).reshape(x.shape), (normalized, factor)


def backward(g: np.ndarray, weight: np.ndarray, offset: float, saved: Saved, into: np.ndarray | None) -> np.ndarray:
    """The gradient of x: factor * (g_n - n * mean(g_n * n)), where n is the normalized row and g_n = g * weight."""
    normalized, factor = saved
    grouped = g.reshape(normalized.shape)
    if into is not None:
        into += np.einsum("tng,tng->g", grouped, normalized)
    inner = grouped * (weight + float(offset))
    mean = np.einsum("tng,tng->tn", inner, normalized)[..., None]
    mean /= normalized.shape[-1]
    inner -= normalized * mean
    inner *= factor
    return inner.reshape(len(g), math.prod(normalized.shape[1:]))

"""logits: softcap(h W^T * multiplier)."""

from __future__ import annotations

import numpy as np

from edgellm.convert.distill.ops import linear, softcap


def forward(
    h: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, multiplier: float, cap: float | None
) -> np.ndarray:
    """h [R, D], weight [V, D]: [R, V]."""
    y = linear.forward(h, weight, bias)
    if multiplier != 1.0:
        y *= float(multiplier)
    return softcap.forward(y, cap)


def backward(
    g: np.ndarray,
    h: np.ndarray,
    logits: np.ndarray,
    weight: np.ndarray,
    multiplier: float,
    cap: float | None,
    into: np.ndarray | None,
    bias_into: np.ndarray | None,
) -> np.ndarray:
    """The gradient of h from that of the logits [R, V]."""
    g = softcap.backward(g, logits, cap)
    if multiplier != 1.0:
        g = g * float(multiplier)
    return linear.backward(g, h, weight, into, bias_into)

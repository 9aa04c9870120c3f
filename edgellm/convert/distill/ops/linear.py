"""linear: y = x W^T + b; with `add`, out = residual + multiplier * y."""

from __future__ import annotations

import numpy as np


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    residual: np.ndarray | None = None,
    multiplier: float = 1.0,
) -> np.ndarray:
    """x [B * T, D] times weight [O, D] transposed, plus bias [O]; added to `residual` [B * T, O] where there is one."""
    y = x @ weight.T
    if bias is not None:
        y += bias
    if residual is None:
        return y
    if multiplier != 1.0:
        y *= float(multiplier)
    y += residual
    return y


def backward(
    g: np.ndarray, x: np.ndarray, weight: np.ndarray, into: np.ndarray | None, bias_into: np.ndarray | None
) -> np.ndarray:
    """The gradient of x, g W. The weight's, g^T x, and the bias's, the sum of g, go where there is an array for them.

    A residual's gradient is g itself, and `multiplier` belongs into g before it is handed in.
    """
    if into is not None:
        into += g.T @ x
    if bias_into is not None:
        bias_into += g.sum(axis=0)
    return g @ weight

"""How much a part of a model matters, judged by what it adds on calibration tokens.

A linear y = x W^T over channels cut into units (a unit: one MLP channel, or the heads of one KV group) is the sum of
what the units add. Two measures of a unit u with columns W_u:

    energy   tr(W_u H_uu W_u^T) = sum over tokens |x_u W_u^T|^2: the squared size of what it adds. For one channel it is
             |W_u|^2 |x_u|^2, Wanda's weight times input norm (arXiv:2306.11695) over a whole column.
    loss     tr(W_u (H^-1)_uu^-1 W_u^T): the squared error left once the other units were re-fitted to stand in for it
             (optimal brain surgeon; arXiv:2301.00774, eq. 3, for a unit of several columns).
"""

from __future__ import annotations

import numpy as np

from edgellm.convert.refit import damped
from edgellm.errors import UsageError

MEASURES = ("energy", "loss")


def unit_scores(
    weight: np.ndarray, hessian: np.ndarray, width: int, measure: str = "energy", ridge: float = 0.01
) -> np.ndarray:
    """The score of each unit of `width` neighbouring channels, float64 [in / width]; more is better kept.

    Args:
        weight: float32 [out, in].
        hessian: X^T X over the calibration tokens, float64 [in, in].
        width: channels of a unit.
        measure: see above.
        ridge: share of the mean diagonal added to the diagonal before H is inverted.

    Raises:
        UsageError: sizes or the measure do not fit.
    """
    inputs = weight.shape[1]
    if measure not in MEASURES:
        raise UsageError("no such measure", key="measure", found=measure, allowed=", ".join(MEASURES))
    if hessian.shape != (inputs, inputs) or inputs % width:
        raise UsageError("does not fit the weight", key="hessian", found=hessian.shape, allowed=f"[{inputs}, {inputs}]")
    inverse = np.linalg.inv(damped(hessian, ridge)) if measure == "loss" else None
    if width == 1:
        squares = np.square(weight, dtype=np.float64).sum(axis=0)
        return squares * hessian.diagonal() if inverse is None else squares / inverse.diagonal()
    units = range(0, inputs, width)
    found = np.empty(len(units))
    for number, first in enumerate(units):
        part = slice(first, first + width)
        columns = weight[:, part].astype(np.float64)
        inner = hessian[part, part] if inverse is None else np.linalg.inv(inverse[part, part])
        found[number] = np.einsum("ij,jk,ik->", columns, inner, columns, optimize=True)
    return found


def channel_energy(weight: np.ndarray, mean_square: np.ndarray) -> np.ndarray:
    """Energy of each channel a token, float64 [in], from the mean of each channel's square alone."""
    return np.square(weight, dtype=np.float64).sum(axis=0) * mean_square


def keep_best(scores: np.ndarray, count: int) -> np.ndarray:
    """Indexes of the `count` best, ascending; of equals the first stay."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


class Influence:
    """Block influence (ShortGPT, arXiv:2403.03853, eq. 1): 1 - the mean cosine of a block's input and output.

    A block whose output points where its input did adds little and can go.
    """

    def __init__(self) -> None:
        self._cosines, self._count = 0.0, 0

    def add(self, before: np.ndarray, after: np.ndarray) -> None:
        """Take more tokens, hidden states [..., D]."""
        before = before.reshape(-1, before.shape[-1])
        after = after.reshape(-1, after.shape[-1])
        sizes = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        products = np.einsum("ij,ij->i", before, after)
        self._cosines += float(np.divide(products, sizes, out=np.zeros_like(sizes), where=sizes > 0).sum())
        self._count += len(before)

    @property
    def value(self) -> float:
        """0: the block turns nothing; 1: nothing of the input's direction is left."""
        return 1.0 - self._cosines / max(self._count, 1)

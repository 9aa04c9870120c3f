"""The triangular factor of a Hessian's inverse, in place: H^-1 = U^T U with U upper triangular.

GPTQ (arXiv:2210.17323, step 3) needs the rows of this U. Instead of inverting H and factoring the inverse: with
H = R R^T, R upper triangular (Cholesky from the last row up), U = R^-1. Half the work, half the digits lost, and both
steps run in blocks within the one matrix. A block's columns are made from finished ones by long products of some of
their rows, which threads share.
"""

from __future__ import annotations

import numpy as np

from edgellm.convert.rows import over_products

_BLOCK = 256


def invert_to_factor(h: np.ndarray) -> np.ndarray:
    """Overwrite h, float64 [n, n], with U and return it; what stands below the diagonal means nothing.

    Only the upper triangle of h is read. Memory: panels of 256 columns. Work: 2/3 n**3 operations.

    Raises:
        numpy.linalg.LinAlgError: h is not positive definite; it is then partly overwritten.
    """
    blocks = [slice(a, min(a + _BLOCK, len(h))) for a in range(0, len(h), _BLOCK)]
    for number in reversed(range(len(blocks))):
        _factor_block(h, number, blocks)
    for number in range(len(blocks)):
        _invert_block(h, number, blocks)
    return h


def _factor_block(h: np.ndarray, number: int, blocks: list[slice]) -> None:
    """One block of columns of R, those behind it being made already."""
    own, behind = blocks[number], slice(blocks[number].stop, len(h))

    def update(rows: slice) -> None:
        h[rows, own] -= h[rows, behind] @ h[own, behind].T

    def solve(rows: slice) -> None:
        h[rows, own] = h[rows, own] @ inverse.T

    if behind.start < len(h):
        over_products(update, blocks[: number + 1])
    corner = np.linalg.cholesky(h[own, own][::-1, ::-1])[::-1, ::-1]
    if not np.isfinite(corner).all():
        raise np.linalg.LinAlgError("not finite")
    h[own, own] = corner
    inverse = np.linalg.inv(corner)
    over_products(solve, blocks[:number])


def _invert_block(h: np.ndarray, number: int, blocks: list[slice]) -> None:
    """One block of columns of R^-1, those before it being inverted already."""
    own = blocks[number]
    corner = np.triu(np.linalg.inv(h[own, own]))
    panel = h[: own.start, own] @ corner
    h[own, own] = corner

    def multiply(rows: slice) -> None:
        h[rows, own] = -(h[rows, rows.start : own.start] @ panel[rows.start :])

    over_products(multiply, blocks[:number])

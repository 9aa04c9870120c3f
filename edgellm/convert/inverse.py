"""The triangular factor of a Hessian's inverse, in place: H^-1 = U^T U with U upper triangular.

GPTQ (arXiv:2210.17323, step 3) needs the rows of this U. Instead of inverting H and factoring the inverse: with
H = R R^T, R upper triangular (Cholesky from the last row up), U = R^-1. Half the work, half the digits lost, and both
steps run in blocks within the one matrix.
"""

from __future__ import annotations

import numpy as np

_BLOCK = 256


def invert_to_factor(h: np.ndarray) -> np.ndarray:
    """Overwrite h, float64 [n, n], with U and return it; what stands below the diagonal means nothing.

    Only the upper triangle of h is read. Memory: panels of 256 columns.

    Raises:
        numpy.linalg.LinAlgError: h is not positive definite; it is then partly overwritten.
    """
    blocks = [(a, min(a + _BLOCK, len(h))) for a in range(0, len(h), _BLOCK)]
    for a, b in reversed(blocks):
        _factor_block(h, a, b, blocks)
    for a, b in blocks:
        _invert_block(h, a, b, blocks)
    return h


def _factor_block(h: np.ndarray, a: int, b: int, blocks: list[tuple[int, int]]) -> None:
    """Columns a to b of R, and what they leave of the leading part."""
    corner = np.linalg.cholesky(h[a:b, a:b][::-1, ::-1])[::-1, ::-1]
    if not np.isfinite(corner).all():
        raise np.linalg.LinAlgError("not finite")
    h[a:b, a:b] = corner
    panel = h[:a, a:b] @ np.linalg.inv(corner).T
    h[:a, a:b] = panel
    for c, d in blocks:
        if d > a:
            break
        h[:d, c:d] -= panel[:d] @ panel[c:d].T


def _invert_block(h: np.ndarray, a: int, b: int, blocks: list[tuple[int, int]]) -> None:
    """Columns a to b of R^-1, those before them being inverted already."""
    corner = np.triu(np.linalg.inv(h[a:b, a:b]))
    h[a:b, a:b] = corner
    panel = h[:a, a:b] @ corner
    for c, d in blocks:
        if d > a:
            break
        h[c:d, a:b] = -(h[c:d, c:a] @ panel[c:])

"""The error that rounding leaves, weight by weight, with ranges clipped or not: what AWQ's searches judge."""

from __future__ import annotations

import numba
import numpy as np
from numba import boolean, float32, int64, void

from edgellm.convert.group_kernel import FLOATS, FLOATS_OUT, HALF, ONE, ZERO, grid_of, group_range


@numba.njit(nogil=True, fastmath={"nnan", "nsz", "contract"})
def _differ(x: np.ndarray, scale: float, zero: float, top: float, difference: np.ndarray) -> None:
    inverse, shift, ceiling = ONE / scale, zero + HALF, top + HALF
    for i in range(len(x)):
        t = x[i] * inverse + shift
        t = t if t > ZERO else ZERO
        t = t if t < ceiling else ceiling
        difference[i] = scale * (np.floor(t) - zero) - x[i]


@numba.njit([void(FLOATS, FLOATS, int64, float32, boolean, FLOATS_OUT, int64, int64)], nogil=True)
def rounding_errors(
    weight: np.ndarray,  # [out, in]
    limits: np.ndarray,  # [out, groups], a group's range is kept within -limit ... limit
    group_size: int,
    top: float,
    sym: bool,
    difference: np.ndarray,  # [out, in], written: the rounded minus the given weight
    first: int,
    last: int,
) -> None:
    """Rows first to last, with grids over each group's whole (limited) range."""
    inputs = weight.shape[1]
    for row in range(first, last):
        for group in range(limits.shape[1]):
            a = group * group_size
            b = min(a + group_size, inputs)
            low, high = group_range(weight[row, a:b])
            limit = limits[row, group]
            low, high = max(low, -limit), min(high, limit)
            scale, zero = (ONE, (top + ONE) * HALF) if low == high else grid_of(low, high, top, sym)
            _differ(weight[row, a:b], scale, zero, top, difference[row, a:b])

"""Kernels on one group of weights: its grid (scale and zero point), and the codes on that grid.

    weight ~ scale * (code - zero),   code = clamp(floor(weight / scale + zero + 1/2), 0, 2**bits - 1)

Scales are rounded to float16 before any code is chosen, so what is judged here is what the file will hold. Codes and
zero points are computed as float32, in which these small integers are exact.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import float32, int64, types, uint8, void

#: Range factors that a search tries: 1, 0.98 ... 0.22.
SEARCH_STEPS = 40
_SHRINK = np.float32(0.02)

ZERO, HALF, ONE, TWO = (np.float32(value) for value in (0, 0.5, 1, 2))
_SMALLEST_NORMAL = np.float32(2.0**-14)
_SUBNORMAL_STEPS = np.float32(2.0**24)
_SPLIT = np.float32(8193)  # 2**13 + 1 leaves the 11 significant bits of a float16

# No NaN comes here (callers check); `half` needs IEEE order, so only sums may be reordered.
_COMPARE = {"nnan", "nsz"}
_SUM = {"nnan", "nsz", "reassoc", "contract"}

FLOATS = types.Array(float32, 2, "C", readonly=True)
FLOATS_OUT = types.Array(float32, 2, "C")
CODES_OUT = types.Array(uint8, 2, "C")
VECTOR = types.Array(float32, 1, "C", readonly=True)


@numba.njit(nogil=True)
def half(x: float) -> float:
    """A float16 value next to x > 0, as float32: nearest (Veltkamp's splitting), upwards where float16 is subnormal."""
    if x < _SMALLEST_NORMAL:
        return max(np.ceil(x * _SUBNORMAL_STEPS), ONE) / _SUBNORMAL_STEPS
    c = x * _SPLIT
    return c - (c - x)


@numba.njit(nogil=True, fastmath=_COMPARE)
def group_range(x: np.ndarray) -> tuple[float, float]:
    """(min(x, 0), max(x, 0))."""
    low, high = ZERO, ZERO
    for i in range(len(x)):
        v = x[i]
        low = v if v < low else low
        high = v if v > high else high
    return low, high


@numba.njit(nogil=True)
def grid_of(low: float, high: float, top: float, sym: bool) -> tuple[float, float]:
    """(scale, zero) of the grid that spans [low, high] with codes 0 to `top`.

    Symmetric grids put max(-low, high) half a step outside, as GPTQ does. Otherwise the zero point is 1 to `top`: 0
    cannot be told apart in GPTQ v1 files, so a group without negative weights spends one code on it.
    """
    if sym:
        return half(TWO * max(-low, high) / top), (top + ONE) * HALF
    scale = half((high - low) / top)
    zero = np.floor(-low / scale + HALF)
    if zero < ONE:
        return half(max(scale, high / (top - ONE))), ONE
    return scale, min(zero, top)


@numba.njit(nogil=True, fastmath=_SUM)
def grid_error(x: np.ndarray, importance: np.ndarray, scale: float, zero: float, top: float) -> float:
    """sum of importance * (x - rounded x)**2."""
    inverse, shift, ceiling = ONE / scale, zero + HALF, top + HALF
    total = ZERO
    for i in range(len(x)):
        t = x[i] * inverse + shift
        t = t if t > ZERO else ZERO
        t = t if t < ceiling else ceiling
        d = x[i] - scale * (np.floor(t) - zero)
        total += importance[i] * d * d
    return total


@numba.njit(nogil=True)
def best_grid(
    x: np.ndarray, importance: np.ndarray, limit: float, top: float, sym: bool, steps: int
) -> tuple[float, float]:
    """(scale, zero) of a group within -limit to limit; with `steps` > 1 shrunk to where the error is smallest."""
    low, high = group_range(x)
    low, high = max(low, -limit), min(high, limit)
    if low == high:
        return ONE, (top + ONE) * HALF
    best_scale, best_zero = grid_of(low, high, top, sym)
    if steps == 1:
        return best_scale, best_zero
    best = grid_error(x, importance, best_scale, best_zero, top)
    for step in range(1, steps):
        shrink = ONE - _SHRINK * np.float32(step)
        scale, zero = grid_of(low * shrink, high * shrink, top, sym)
        error = grid_error(x, importance, scale, zero, top)
        if error < best:
            best_scale, best_zero, best = scale, zero, error
    return best_scale, best_zero


@numba.njit(nogil=True, fastmath=_COMPARE)
def encode(x: np.ndarray, scale: float, zero: float, top: float, codes: np.ndarray) -> None:
    """The code of every weight of a group."""
    inverse, shift, ceiling = ONE / scale, zero + HALF, top + HALF
    for i in range(len(x)):
        t = x[i] * inverse + shift
        t = t if t > ZERO else ZERO
        t = t if t < ceiling else ceiling
        codes[i] = np.uint8(np.int32(t))


@numba.njit(
    [void(FLOATS, VECTOR, FLOATS, int64, float32, types.boolean, int64, FLOATS_OUT, FLOATS_OUT, int64, int64)],
    nogil=True,
)
def find_grids(
    weight: np.ndarray,  # [out, in]
    importance: np.ndarray,  # [in]
    limits: np.ndarray,  # [out, groups], what |weight| is clipped to; infinity for no clipping
    group_size: int,
    top: float,
    sym: bool,
    steps: int,
    scales: np.ndarray,  # [out, groups], written
    zeros: np.ndarray,  # [out, groups], written
    first: int,
    last: int,
) -> None:
    """Scales and zero points of rows first to last."""
    inputs = weight.shape[1]
    for row in range(first, last):
        for group in range(scales.shape[1]):
            a = group * group_size
            b = min(a + group_size, inputs)
            scales[row, group], zeros[row, group] = best_grid(
                weight[row, a:b], importance[a:b], limits[row, group], top, sym, steps
            )


@numba.njit([void(FLOATS, int64, float32, FLOATS, FLOATS, CODES_OUT, int64, int64)], nogil=True)
def encode_rows(
    weight: np.ndarray,  # [out, in]
    group_size: int,
    top: float,
    scales: np.ndarray,  # [out, groups]
    zeros: np.ndarray,  # [out, groups]
    codes: np.ndarray,  # [out, in], written
    first: int,
    last: int,
) -> None:
    """Codes of rows first to last."""
    inputs = weight.shape[1]
    for row in range(first, last):
        for group in range(scales.shape[1]):
            a = group * group_size
            b = min(a + group_size, inputs)
            encode(weight[row, a:b], scales[row, group], zeros[row, group], top, codes[row, a:b])

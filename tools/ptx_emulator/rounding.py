"""Sums and products rounded once, as the hardware does it, on numpy's float64."""

from __future__ import annotations

import numpy as np

_TINY = np.float32(np.finfo(np.float32).tiny)


def odd_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b in float64 rounded to odd (Boldo and Melquiond): rounding it again, to fewer than 52 bits, is right."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    bits = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
    # Away from zero when the error has the total's sign, else towards it; either neighbour is odd.
    step = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(inexact, bits + step, bits).view(np.float64)


def fused_float32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32 with one rounding to nearest even.

    The product is exact in float64; the sum is rounded twice, which can only differ where float64 lands on the
    middle between two float32 (or among denormals): those few are summed again with rounding to odd.
    """
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    result = total.astype(np.float32)
    bits = total.view(np.uint64) & np.uint64(0x1FFFFFFF)
    doubtful = bits == np.uint64(0x10000000)
    doubtful |= (result.view(np.uint32) << np.uint32(1)) - np.uint32(1) < np.uint32(0x00FFFFFF)
    if doubtful.any():
        at = np.flatnonzero(doubtful)
        result[at] = odd_sum(product[at], c[at].astype(np.float64)).astype(np.float32)
    return result


def fused_float64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float64 through double-double arithmetic (Dekker): within one unit of the last place."""
    split = np.float64(134217729.0)
    product = a * b
    a1 = a * split - (a * split - a)
    b1 = b * split - (b * split - b)
    a0, b0 = a - a1, b - b1
    lost = ((a1 * b1 - product) + a1 * b0 + a0 * b1) + a0 * b0
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part) + lost
    return np.where(np.isfinite(error), total + error, total)


def to_float32(values: np.ndarray, mode: str) -> np.ndarray:
    """float64 -> float32 in rounding `mode` rn, rz, rm or rp."""
    nearest = values.astype(np.float32)
    if mode == "rn":
        return nearest
    target = {"rz": np.float32(0), "rm": np.float32(-np.inf), "rp": np.float32(np.inf)}[mode]
    wide = nearest.astype(np.float64)
    wrong = {"rz": np.abs(wide) > np.abs(values), "rm": wide > values, "rp": wide < values}[mode]
    return np.where(wrong, np.nextafter(nearest, target), nearest)


def to_float32_odd(values: np.ndarray) -> np.ndarray:
    """float64 -> float32 rounded to odd, for another rounding to follow."""
    down = to_float32(values, "rz")
    inexact = (down.astype(np.float64) != values) & np.isfinite(values)
    return np.where(inexact, down.view(np.uint32) | np.uint32(1), down.view(np.uint32)).view(np.float32)


def to_bfloat16(values: np.ndarray, mode: str = "rn") -> np.ndarray:
    """float32 -> the 16 bits of a bfloat16, rounded to nearest even or towards zero."""
    bits = values.view(np.uint32)
    if mode == "rn":
        rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
        bits = np.where(np.isnan(values), np.uint32(0x7FFF0000), rounded)
    elif mode == "rz":
        bits = np.where(np.isnan(values), np.uint32(0x7FFF0000), bits)
    return (bits >> np.uint32(16)).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 that a bfloat16's 16 bits are."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def flushed(values: np.ndarray) -> np.ndarray:
    """float32 denormals replaced by zeros of their sign (.ftz)."""
    if values.dtype != np.float32:
        return values
    return np.where(np.abs(values) < _TINY, np.copysign(np.float32(0), values), values)

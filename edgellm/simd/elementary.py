"""Elementary functions of float32 lanes, written in the vocabulary: the same lines run lowered and emulated.

Coefficients are those of the Cephes library (S. Moshier), single precision.
"""

from __future__ import annotations

from numba import njit

from edgellm.simd.ops import bitcast_f32, bitcast_i32, fma, maximum, minimum, select, splat_f32, sqrt, zero_f32

_LOG2_E = 1.44269504088896341
#: Adding it leaves the nearest integer in the lowest bits of the sum.
_ROUNDER = 12582912.0
#: ln 2 in two parts: a multiple of the first by a small integer is exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
#: Above this e^x is over the largest float, below the other one under the smallest normal one.
_EXP_MOST, _EXP_LEAST = 88.7228317, -87.3365402


@njit(nogil=True, forceinline=True)
def exp(x):
    """e^x within 2 units in the last place; 0 below -87.33 (no subnormals), infinity above 88.72, NaN of NaN.

    e^x = 2^n e^r with n the integer nearest x / ln 2 and |r| <= ln 2 / 2, e^r by a polynomial of degree 7.
    """
    capped = minimum(maximum(x, splat_f32(_EXP_LEAST)), splat_f32(_EXP_MOST))
    shifted = fma(capped, splat_f32(_LOG2_E), splat_f32(_ROUNDER))
    n = shifted - splat_f32(_ROUNDER)
    r = fma(n, splat_f32(-_LN2_HIGH), capped)
    r = fma(n, splat_f32(-_LN2_LOW), r)
    p = fma(splat_f32(1.9875691500e-4), r, splat_f32(1.3981999507e-3))
    p = fma(p, r, splat_f32(8.3334519073e-3))
    p = fma(p, r, splat_f32(4.1665795894e-2))
    p = fma(p, r, splat_f32(1.6666665459e-1))
    p = fma(p, r, splat_f32(5.0000001201e-1))
    y = fma(p, r * r, r) + splat_f32(1.0)
    y = bitcast_f32(bitcast_i32(y) + (bitcast_i32(shifted) << 23))
    y = select(x < splat_f32(_EXP_LEAST), zero_f32(), y)
    y = select(x > splat_f32(_EXP_MOST), splat_f32(float("inf")), y)
    return select(x == x, y, x)


@njit(nogil=True, forceinline=True)
def sigmoid(x):
    """1 / (1 + e^-x) within 4 units in the last place; NaN of NaN."""
    return splat_f32(1.0) / (splat_f32(1.0) + exp(-x))


@njit(nogil=True, forceinline=True)
def tanh(x):
    """tanh x within 3 units in the last place; NaN of NaN.

    Up to 0.625 an odd polynomial, where 1 - 2 / (e^2x + 1) would cancel.
    """
    square = x * x
    p = fma(splat_f32(-5.70498872745e-3), square, splat_f32(2.06390887954e-2))
    p = fma(p, square, splat_f32(-5.37397155531e-2))
    p = fma(p, square, splat_f32(1.33314422036e-1))
    p = fma(p, square, splat_f32(-3.33332819422e-1))
    near = fma(p * square, x, x)
    magnitude = abs(x)
    far = splat_f32(1.0) - splat_f32(2.0) / (exp(magnitude + magnitude) + splat_f32(1.0))
    far = select(x < zero_f32(), -far, far)
    return select(magnitude <= splat_f32(0.625), near, far)


@njit(nogil=True, forceinline=True)
def rsqrt(x):
    """1 / sqrt(x), each of the two steps correctly rounded; infinity of 0, NaN below."""
    return splat_f32(1.0) / sqrt(x)

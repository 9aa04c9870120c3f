"""Cosine and sine of an angle in fixed-point turns (`turns.py`), to float32's precision.

The upper 32 bits of the angle are a whole turn in steps of 1.5e-9 radians; the top two of them, rounded, name the
quarter, and what is left, at most an eighth of a turn either way, goes into the polynomials of Cephes' `sinf` and
`cosf`. The hardware's `cos.approx` would be off by 5e-7 and more.
"""

from __future__ import annotations

import math

from edgellm.backends.cuda.ptx import (
    device,
    f32,
    f32_of_i32,
    fma,
    i32,
    u32,
    u64,
)

_RADIANS = f32(2 * math.pi / 2**32)
_EIGHTH = u32(1 << 29)


@device
def cos_sin(word, number):
    """(cosine, sine) of `word` * `number` turns / 2^64: u64 and u32; absolute error below 1.5e-7."""
    angle = u32((word * u64(number)) >> u64(32))
    quarter = u32(u32(angle + _EIGHTH) >> u32(30))
    x = f32_of_i32(i32(u32(angle - u32(quarter << u32(30))))) * _RADIANS
    square = x * x
    sine = fma(square, f32(-1.9515295891e-4), f32(8.3321608736e-3))
    sine = fma(square, sine, f32(-1.6666654611e-1))
    sine = fma(square * x, sine, x)
    cosine = fma(square, f32(2.443315711809948e-5), f32(-1.388731625493765e-3))
    cosine = fma(square, cosine, f32(4.166664568298827e-2))
    cosine = fma(square * square, cosine, fma(square, f32(-0.5), f32(1.0)))
    swapped = (quarter & u32(1)) != u32(0)
    first = sine if swapped else cosine
    second = cosine if swapped else sine
    first = -first if u32(quarter + u32(1)) & u32(2) else first
    second = -second if quarter & u32(2) else second
    return first, second

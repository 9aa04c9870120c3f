"""Rows of keys and values as they are stored: rounded and written by a warp, read by eight elements.

Loading words and unpacking them are apart so that a kernel can have several loads under way before it uses the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgellm.backends.cuda.kernels.heads import divide, head_scale
from edgellm.backends.cuda.ptx import (
    device,
    f16_to_f32,
    f32,
    f32_of_bits,
    f32_of_i32,
    f32_to_f16,
    i8,
    ldg64,
    ldg128,
    prmt,
    rcp,
    round_i32,
    u32,
    unpack_f16x2,
    warp_barrier,
)

_SIGNS = u32(0x80808080)
_F32_2_23 = u32(0x4B000000)  # 2^23: its ulp is 1
_ZERO_CODE = f32(2.0**23 + 128)
_LEAST_SCALE = f32(1e-37)  # below it 1 / scale is no float32


@device
def words_float16(cache, at):
    """The four words of elements at .. at + 7."""
    return ldg128(cache, at)


@device
def words_int8(cache, at):
    """The two words of elements at .. at + 7, and two that say nothing."""
    low, high = ldg64(cache, at)
    return low, high, u32(0), u32(0)


@device
def floats_float16(a, b, c, d):
    """Eight floats of four words."""
    e0, e1 = unpack_f16x2(a)
    e2, e3 = unpack_f16x2(b)
    e4, e5 = unpack_f16x2(c)
    e6, e7 = unpack_f16x2(d)
    return e0, e1, e2, e3, e4, e5, e6, e7


@device
def _code(word, selector):
    return f32_of_bits(prmt(word, _F32_2_23, selector)) - _ZERO_CODE


@device
def floats_int8(a, b, c, d):
    """Eight codes of two words as floats: a byte, its sign flipped, goes into the mantissa of 2^23."""
    low = u32(a ^ _SIGNS)
    high = u32(b ^ _SIGNS)
    return (
        _code(low, u32(0x7440)),
        _code(low, u32(0x7441)),
        _code(low, u32(0x7442)),
        _code(low, u32(0x7443)),
        _code(high, u32(0x7440)),
        _code(high, u32(0x7441)),
        _code(high, u32(0x7442)),
        _code(high, u32(0x7443)),
    )


@device
def round_float16(cache, scales, place, keep, stage, at, depth, lane):
    """Round the head at stage[at] as float16 storage does; where `keep`, store it, padding included, as row `place`."""
    e = lane
    while e < depth:
        half = f32_to_f16(stage[at + e])
        if keep:
            cache[place * depth + e] = half
        stage[at + e] = f16_to_f32(half)
        e = u32(e + u32(32))
    warp_barrier()


@device
def round_int8(cache, scales, place, keep, stage, at, depth, lane):
    """Round the head at stage[at] as int8 storage does; where `keep`, store it, padding included, as row `place`."""
    scale = head_scale(stage, at, depth, lane)
    divisor = scale if scale > _LEAST_SCALE else f32(1.0)
    inverse = rcp(divisor)
    e = lane
    while e < depth:
        code = round_i32(divide(stage[at + e], divisor, inverse))
        if keep:
            cache[place * depth + e] = i8(code)
        stage[at + e] = f32_of_i32(code) * scale
        e = u32(e + u32(32))
    if keep and lane == u32(0):
        scales[place] = scale
    warp_barrier()


@dataclass(frozen=True)
class Storage:
    """A kind of storage: the parameter type of the cache, whether rows have scales, and the functions above."""

    element: str
    scaled: bool
    words: Any
    floats: Any
    round: Any


#: By the names of `CacheGeometry.dtype`.
STORAGES = {
    "float16": Storage("u16*", False, words_float16, floats_float16, round_float16),
    "int8": Storage("i8*", True, words_int8, floats_int8, round_int8),
}

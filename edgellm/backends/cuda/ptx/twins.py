"""What each op of one thread computes, in NumPy: the definition that its PTX is tested against.

A twin has the op's name and parameters; each is an array with an element a lane ([32], dtype of the annotation), and so
is each result. Memory is an array of u32, and an index counts its elements. Rounding is IEEE 754's, to nearest even;
for `approx` instructions a twin is exact and the device near it (`BOUNDS`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Lanes = NDArray[np.generic]

#: Relative error of the device's approximations; every other op gives the twin's very bits.
BOUNDS = {
    "ex2": 2.0**-22,
    "lg2": 2.0**-21,
    "rsqrt": 2.0**-22,
    "sqrt": 2.0**-22,
    "rcp": 2.0**-22,
    "tanh_fast": 2.0**-10.9,
}


def _halves(pair: Lanes) -> Lanes:
    """u32 [32] as float64 [32, 2], of float16."""
    return np.ascontiguousarray(pair).view(np.float16).reshape(-1, 2).astype(np.float64)


def _pair(values: Lanes) -> Lanes:
    """float64 or float32 [32, 2] as u32 [32] of float16, rounded once."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.astype(np.float16)).view(np.uint32).reshape(-1)


def _bf16_halves(pair: Lanes) -> Lanes:
    words = np.ascontiguousarray(pair).view(np.uint16).reshape(-1, 2).astype(np.uint32) << 16
    return words.view(np.float32).astype(np.float64)


def _bf16(values: Lanes) -> Lanes:
    """float32 as u16 of bfloat16, to nearest even; NaN as 0x7FFF."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def _bf16_of_f64(values: Lanes) -> Lanes:
    """float64 as u16 of bfloat16, rounded once: to float32 towards an odd last bit first."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    bits = near.view(np.uint32)
    inexact = near.astype(np.float64) != values
    away = np.abs(near.astype(np.float64)) > np.abs(values)
    odd = np.where(inexact & np.isfinite(near), (bits - away.astype(np.uint32)) | 1, bits).astype(np.uint32)
    return _bf16(odd.view(np.float32))


def add_f16x2(a: Lanes, b: Lanes) -> Lanes:
    return _pair(_halves(a) + _halves(b))


def sub_f16x2(a: Lanes, b: Lanes) -> Lanes:
    return _pair(_halves(a) - _halves(b))


def mul_f16x2(a: Lanes, b: Lanes) -> Lanes:
    return _pair(_halves(a) * _halves(b))


def fma_f16x2(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    return _pair(_halves(a) * _halves(b) + _halves(c))


def fma_bf16x2(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    rounded = _bf16_of_f64(_bf16_halves(a) * _bf16_halves(b) + _bf16_halves(c))
    return np.ascontiguousarray(rounded).view(np.uint32).reshape(-1)


def unpack_f16x2(pair: Lanes) -> tuple[Lanes, Lanes]:
    halves = _halves(pair).astype(np.float32)
    return halves[:, 0], halves[:, 1]


def pack_f16x2(low: Lanes, high: Lanes) -> Lanes:
    return _pair(np.stack([low, high], 1))


def unpack_bf16x2(pair: Lanes) -> tuple[Lanes, Lanes]:
    halves = _bf16_halves(pair).astype(np.float32)
    return halves[:, 0], halves[:, 1]


def pack_bf16x2(low: Lanes, high: Lanes) -> Lanes:
    return _bf16(low).astype(np.uint32) | _bf16(high).astype(np.uint32) << 16


def f16_to_f32(half: Lanes) -> Lanes:
    return half.view(np.float16).astype(np.float32)


def f32_to_f16(value: Lanes) -> Lanes:
    with np.errstate(over="ignore"):
        return value.astype(np.float16).view(np.uint16)


def _bytes(word: Lanes, dtype: type) -> Lanes:
    return np.ascontiguousarray(word).view(dtype).reshape(-1, 4).astype(np.int64)


def dp4a_ss(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    return (c + (_bytes(a, np.int8) * _bytes(b, np.int8)).sum(1)).astype(np.int32)


def dp4a_us(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    return (c + (_bytes(a, np.uint8) * _bytes(b, np.int8)).sum(1)).astype(np.int32)


def prmt(a: Lanes, b: Lanes, selector: Lanes) -> Lanes:
    source = np.concatenate([_bytes(a, np.uint8), _bytes(b, np.uint8)], 1)
    result = np.zeros(len(a), np.uint32)
    for place in range(4):
        nibble = (selector >> np.uint32(4 * place)) & 15
        byte = np.take_along_axis(source, (nibble & 7)[:, None].astype(np.int64), 1)[:, 0]
        byte = np.where(nibble & 8, np.where(byte & 128, 255, 0), byte)
        result |= byte.astype(np.uint32) << np.uint32(8 * place)
    return result


def and_or(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    return (a & b) | c


def and_xor(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    return (a & b) ^ c


def mul_hi_u32(a: Lanes, b: Lanes) -> Lanes:
    return (a.astype(np.uint64) * b.astype(np.uint64) >> np.uint64(32)).astype(np.uint32)


def funnel_left(low: Lanes, high: Lanes, count: Lanes) -> Lanes:
    both = high.astype(np.uint64) << np.uint64(32) | low
    return (both << (count % 32).astype(np.uint64) >> np.uint64(32)).astype(np.uint32)


def bits_of_f32(value: Lanes) -> Lanes:
    return value.view(np.uint32)


def f32_of_bits(bits: Lanes) -> Lanes:
    return bits.view(np.float32)


def fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Rounded once: the product is exact in float64, its sum with c is rounded to an odd last bit before float32."""
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        total = product + addend
        virtual = total - product
        rest = (product - (total - virtual)) + (addend - virtual)  # Knuth's two-sum: total + rest is exact
    bits = total.view(np.int64)
    towards_zero = (rest < 0) == (total > 0)
    inexact = np.isfinite(total) & (rest != 0) & (bits & 1 == 0)
    odd = np.where(inexact, np.where(towards_zero, bits - 1, bits + 1), bits)
    with np.errstate(over="ignore"):
        return odd.view(np.float64).astype(np.float32)


def fmax(a: Lanes, b: Lanes) -> Lanes:
    return np.fmax(a, b)


def fmin(a: Lanes, b: Lanes) -> Lanes:
    return np.fmin(a, b)


def fabs(a: Lanes) -> Lanes:
    return np.abs(a)


def _flushed(value: Lanes) -> Lanes:
    """float32 with subnormals as zeros of their sign."""
    value = value.astype(np.float32)
    return np.where(np.abs(value) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), value), value)


def ex2(a: Lanes) -> Lanes:
    with np.errstate(over="ignore"):
        return _flushed(np.exp2(_flushed(a).astype(np.float64)).astype(np.float32))


def lg2(a: Lanes) -> Lanes:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log2(_flushed(a).astype(np.float64)).astype(np.float32)


def rsqrt(a: Lanes) -> Lanes:
    with np.errstate(divide="ignore", invalid="ignore"):
        return (1 / np.sqrt(_flushed(a).astype(np.float64))).astype(np.float32)


def sqrt(a: Lanes) -> Lanes:
    with np.errstate(invalid="ignore"):
        return np.sqrt(_flushed(a).astype(np.float64)).astype(np.float32)


def rcp(a: Lanes) -> Lanes:
    with np.errstate(divide="ignore"):
        return _flushed((1 / _flushed(a).astype(np.float64)).astype(np.float32))


def tanh_fast(a: Lanes) -> Lanes:
    return np.tanh(a.astype(np.float64)).astype(np.float32)


def rint(a: Lanes) -> Lanes:
    return np.rint(a)


def round_i32(a: Lanes) -> Lanes:
    rounded = np.clip(np.rint(np.nan_to_num(a.astype(np.float64), nan=0.0)), -(2.0**31), 2.0**31 - 1)
    return rounded.astype(np.int64).astype(np.int32)


def f32_of_i32(a: Lanes) -> Lanes:
    return a.astype(np.float32)


def f32_of_u32(a: Lanes) -> Lanes:
    return a.astype(np.float32)

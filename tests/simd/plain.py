"""What the ops should give, in plain Python numbers: the other side of every comparison."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np


def f32(value: float) -> float:
    """The nearest float32, ties to even."""
    if math.isnan(value) or math.isinf(value):
        return value
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def bits_of(value: float) -> int:
    return struct.unpack("<I", struct.pack("<f", value))[0]


def float_of(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0]


def half_bits(value: float) -> int:
    """float32 to float16 bits, ties to even."""
    if math.isnan(value):
        return 0x7E00
    try:
        return struct.unpack("<H", struct.pack("<e", value))[0]
    except OverflowError:
        return 0x7C00 | (0x8000 if value < 0 else 0)


def half_value(bits: int) -> float:
    return struct.unpack("<e", struct.pack("<H", bits))[0]


def bfloat_bits(value: float) -> int:
    """float32 to bfloat16 bits, ties to even."""
    if math.isnan(value):
        return 0x7FC0
    bits = bits_of(value)
    upper, lower = bits >> 16, bits & 0xFFFF
    return upper + (lower > 0x8000 or (lower == 0x8000 and upper & 1))


def wrap(value: int, bits: int, signed: bool = True) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


def divide(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b) or (a == 0 and b == 0) or (math.isinf(a) and math.isinf(b)):
        return math.nan
    if b == 0:
        return math.copysign(math.inf, a) * math.copysign(1.0, b)
    return f32(a / b)


def square_root(value: float) -> float:
    return value if math.isnan(value) or value == 0 else math.nan if value < 0 else f32(math.sqrt(value))


def fused(a: float, b: float, c: float) -> float:
    """a * b + c rounded to float32 once."""
    if not all(map(math.isfinite, (a, b, c))):
        with_nan = a * b + c
        return with_nan if math.isnan(with_nan) else f32(with_nan)
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c  # the sign of zero
    near = f32(float(exact))
    if math.isinf(near):
        return near
    close = [near, float_of(bits_of(near) + 1), float_of(bits_of(near) - 1)] if near else [near]
    finite = [value for value in close if math.isfinite(value)]
    return min(finite, key=lambda value: (abs(Fraction(value) - exact), bits_of(value) & 1))


def twice_rounded(a: float, b: float, c: float) -> float:
    return f32(f32(a * b) + c)


def to_int32(value: float) -> int:
    """The nearest integer, ties to even, kept within int32; 0 for NaN."""
    if math.isnan(value):
        return 0
    if math.isinf(value):
        return 2**31 - 1 if value > 0 else -(2**31)
    return min(max(round(value), -(2**31)), 2**31 - 1)


def fold(values: list, combine) -> float:
    """Upper half onto lower half until one is left."""
    while len(values) > 1:
        half = len(values) // 2
        values = [combine(a, b) for a, b in zip(values[:half], values[half:], strict=True)]
    return values[0]


def same(got: float, expected: float) -> bool:
    """Equal with the sign of zero; any NaN is any NaN."""
    if math.isnan(expected):
        return math.isnan(got)
    return got == expected and math.copysign(1.0, got) == math.copysign(1.0, expected)


def differences(got, expected) -> list:
    """(index, got, expected) of what differs."""
    pairs = enumerate(zip(list(got), list(expected), strict=True))
    return [(i, float(g), float(e)) for i, (g, e) in pairs if not same(float(g), float(e))]


def listed(array: np.ndarray) -> list:
    """The elements as Python numbers."""
    return array.ravel().tolist()


def integer_values(dtype, count: int, seed: int) -> np.ndarray:
    """Random ones with both ends among them; in order for seed 0, else mixed."""
    info, rng = np.iinfo(dtype), np.random.default_rng(seed)
    values = rng.integers(info.min, info.max, count, endpoint=True, dtype=dtype)
    values[:8] = [info.min, info.max, 0, 1, info.min + 1, info.max - 1, info.min, info.max]
    values[8:12] = 7
    return rng.permutation(values) if seed else values

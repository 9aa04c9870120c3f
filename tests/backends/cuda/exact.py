"""Arithmetic of floats on Python's fractions: what the emulator's numpy is held to."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

# format -> (bits of the significand with its leading one, lowest exponent, bits of the exponent)
FORMATS = {"f32": (24, -126, 8), "f16": (11, -14, 5), "bf16": (8, -126, 8)}


def decode(bits: int, name: str) -> Fraction | float:
    """The value of a pattern; a float for infinities and NaN."""
    digits, lowest, width = FORMATS[name]
    stored = digits - 1
    sign = -1 if bits >> (stored + width) else 1
    exponent, fraction = bits >> stored & ((1 << width) - 1), bits & ((1 << stored) - 1)
    if exponent == (1 << width) - 1:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * Fraction(fraction) * Fraction(2) ** (lowest - stored)
    return sign * Fraction(fraction + (1 << stored)) * Fraction(2) ** (lowest + exponent - 1 - stored)


def encode(value: Fraction, name: str, mode: str = "rn") -> int:
    """The pattern of a number that is not zero, rounded; overflow gives infinity (or the largest towards zero)."""
    digits, lowest, width = FORMATS[name]
    sign, magnitude = value < 0, abs(value)
    exponent = max(magnitude.numerator.bit_length() - magnitude.denominator.bit_length(), lowest)
    while exponent > lowest and magnitude < Fraction(2) ** exponent:
        exponent -= 1
    while magnitude >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - digits + 1)
    whole, rest = divmod(magnitude, unit)
    up = {"rn": rest * 2 > unit or (rest * 2 == unit and whole % 2 == 1), "rz": False}
    up |= {"rp": rest > 0 and not sign, "rm": rest > 0 and sign}
    pattern = ((exponent - lowest) << (digits - 1)) + int(whole) + up[mode]
    limit = ((1 << width) - 1) << (digits - 1)
    if pattern >= limit:
        pattern = limit if mode == "rn" or (mode == "rp" and not sign) or (mode == "rm" and sign) else limit - 1
    return pattern | sign << (digits - 1 + width)


def float_of(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]

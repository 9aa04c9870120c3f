"""Products of bytes summed into 32-bit lanes, four by four, and of 16-bit words, two by two."""

from __future__ import annotations

from llvmlite import ir

from edgellm.simd.lowering import LOWERING
from edgellm.simd.operation import Emitter, form, operation
from edgellm.simd.vector import I8, I16, I32, U8


@operation(form(I32, I32, U8, I8))
def dot_u8i8(emit: Emitter, acc: ir.Value, u: ir.Value, s: ir.Value) -> ir.Value:
    """acc + u0 * s0 + u1 * s1 + u2 * s2 + u3 * s3 of each lane's four bytes, exact for every byte; wraps around."""
    return LOWERING.dot_u8i8(emit, acc, u, s)


@operation(form(I32, I32, U8, I8))
def dot_u7i8(emit: Emitter, acc: ir.Value, u: ir.Value, s: ir.Value) -> ir.Value:
    """`dot_u8i8` for u of 0 .. 127, such as 4-bit codes: the fast one on AVX2 and NEON, where a larger u is wrong."""
    return LOWERING.dot_u7i8(emit, acc, u, s)


@operation(form(I32, I32, I8, I8))
def dot_i8i8(emit: Emitter, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """acc + the products of each lane's four signed bytes, exact for every byte; wraps around."""
    return LOWERING.dot_i8i8(emit, acc, a, b)


@operation(form(I32, I32, I16, I16))
def dot_i16i16(emit: Emitter, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """acc + a0 * b0 + a1 * b1 of each lane's two signed words; wraps around."""
    return LOWERING.dot_i16i16(emit, acc, a, b)

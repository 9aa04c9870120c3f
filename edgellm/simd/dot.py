"""Products of bytes summed into 32-bit lanes, four by four, and the accumulators of a tile."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import alloca_once_value
from numba.core.errors import TypingError
from numba.extending import intrinsic

from edgellm.simd.lowering import LOWERING
from edgellm.simd.vector import I8, I32, U8, Emitter, VectorType, form, operation


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


@intrinsic(prefer_literal=True)
def tile(typing_context: Any, value: Any, count: Any) -> Any:
    """A tuple of `count` (a constant) times the vector, to accumulate in: `acc[t]` reads, `tile_set` writes.

    A loop `for t in range(count)` over a tile is unrolled and its vectors stay in registers, as many as there are.
    """
    if not isinstance(value, VectorType) or not isinstance(count, types.IntegerLiteral):
        raise TypingError(f"tile takes (vector, constant), not ({value}, {count})")
    result = types.UniTuple(value, count.literal_value)

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> ir.Value:
        filled = ir.Constant(context.get_value_type(result), ir.Undefined)
        for position in range(result.count):
            filled = builder.insert_value(filled, values[0], position)
        return filled

    return result(value, count), lower


@intrinsic
def tile_set(typing_context: Any, vectors: Any, position: Any, value: Any) -> Any:
    """The tile with vector number `position`, which must be within it, replaced."""
    if not isinstance(vectors, types.UniTuple) or vectors.dtype != value or not isinstance(position, types.Integer):
        raise TypingError(f"tile_set takes (tile, integer, vector of the tile), not ({vectors}, {position}, {value})")

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> ir.Value:
        slot = alloca_once_value(builder, values[0])
        zero = ir.Constant(values[1].type, 0)
        builder.store(values[2], builder.gep(slot, [zero, values[1]], inbounds=True))
        return builder.load(slot)

    return vectors(vectors, types.intp, value), lower

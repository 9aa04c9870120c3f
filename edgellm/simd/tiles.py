"""Tiles: as many vectors as a kernel keeps in registers side by side, such as the accumulators of T tokens.

Every op and operator takes tiles in the place of vectors (`operation.py`), and memory is met through `indices`:

    acc = tile(zero_i32(), T)
    acc = dot_u7i8(acc, weights, broadcast_i8x4(x, indices(start, 4, T)))  # T dot products with the same weights
    store(y, indices(0, stride, T), acc)
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import alloca_once_value
from numba.core.errors import TypingError
from numba.extending import intrinsic

from edgellm.simd.vector import TileType, VectorType


@intrinsic(prefer_literal=True)
def tile(typing_context: Any, value: Any, count: Any) -> Any:
    """`count` (a constant) times the vector."""
    if not isinstance(value, VectorType) or not isinstance(count, types.IntegerLiteral):
        raise TypingError(f"tile takes (vector, constant), not ({value}, {count})")
    result = TileType(value, count.literal_value)

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> ir.Value:
        return _fill(context, builder, result, [values[0]] * result.count)

    return result(value, count), lower


@intrinsic(prefer_literal=True)
def indices(typing_context: Any, start: Any, step: Any, count: Any) -> Any:
    """start, start + step ... : `count` (a constant) of them, for ops that take an index."""
    whole = isinstance(start, types.Integer) and isinstance(step, types.Integer)
    if not whole or not isinstance(count, types.IntegerLiteral):
        raise TypingError(f"indices takes (integer, integer, constant), not ({start}, {step}, {count})")
    result = TileType(types.intp, count.literal_value)

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> ir.Value:
        first, step, _ = values
        offsets = [builder.mul(step, ir.Constant(step.type, position)) for position in range(result.count)]
        return _fill(context, builder, result, [builder.add(first, offset) for offset in offsets])

    return result(types.intp, types.intp, count), lower


@intrinsic
def tile_set(typing_context: Any, vectors: Any, position: Any, value: Any) -> Any:
    """The tile with vector number `position` replaced; the position, 0 up to its length, is not checked.

    In registers only where the position is a constant or its loop is short enough to be unrolled.
    """
    if not isinstance(vectors, TileType) or vectors.element != value or not isinstance(position, types.Integer):
        raise TypingError(f"tile_set takes (tile, integer, vector of the tile), not ({vectors}, {position}, {value})")

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> ir.Value:
        slot = alloca_once_value(builder, values[0])
        zero = ir.Constant(values[1].type, 0)
        builder.store(values[2], builder.gep(slot, [zero, values[1]], inbounds=True))
        return builder.load(slot)

    return vectors(vectors, types.intp, value), lower


def _fill(context: Any, builder: ir.IRBuilder, kind: TileType, values: list[ir.Value]) -> ir.Value:
    filled = ir.Constant(context.get_value_type(kind), ir.Undefined)
    for position, value in enumerate(values):
        filled = builder.insert_value(filled, value, position)
    return filled

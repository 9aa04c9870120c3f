"""Vector types for numba, each an LLVM vector, and tiles: several vectors that an op takes one after the other.

`F32`, `I32`, `I16`, `I8`, `U8` fill one native vector of the target. A `mask` has one bit a lane. Types never convert
into each other by themselves: an op takes exactly the types that it names.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import models, register_model

from edgellm.simd.target import F32_LANES, I8_LANES, I16_LANES, I32_LANES, U8_LANES

_ELEMENTS = {
    "f32": ir.FloatType(),
    "i32": ir.IntType(32),
    "i16": ir.IntType(16),
    "i8": ir.IntType(8),
    "u8": ir.IntType(8),
    "mask": ir.IntType(1),
}


class LanesType(types.Type):
    """A vector or a tile."""


class VectorType(LanesType):
    """`lanes` elements of one kind; two of the same kind and length are the same type."""

    def __init__(self, kind: str, lanes: int) -> None:
        self.kind = kind
        self.lanes = lanes
        super().__init__(name=f"{kind}x{lanes}")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(_ELEMENTS[self.kind], self.lanes)


class TileType(LanesType):
    """`count` times the same type: vectors, or the scalars (indices, sums) that go with them."""

    def __init__(self, element: types.Type, count: int) -> None:
        self.element = element
        self.count = count
        super().__init__(name=f"tile({element} x {count})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: VectorType) -> None:
        super().__init__(manager, vector, vector.llvm)


@register_model(TileType)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, tile: TileType) -> None:
        element = manager.lookup(tile.element).get_value_type()
        super().__init__(manager, tile, ir.ArrayType(element, tile.count))


F32 = VectorType("f32", F32_LANES)
I32 = VectorType("i32", I32_LANES)
I16 = VectorType("i16", I16_LANES)
I8 = VectorType("i8", I8_LANES)
U8 = VectorType("u8", U8_LANES)
INTEGERS = (I32, I16, I8, U8)
VECTORS = (F32, *INTEGERS)


def mask_of(vector: VectorType) -> VectorType:
    """The type of a comparison of two such vectors."""
    return VectorType("mask", vector.lanes)


MASKS = tuple(dict.fromkeys(mask_of(vector) for vector in VECTORS))

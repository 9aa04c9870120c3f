"""Vectors that are NumPy arrays, and tiles of them: what the emulated ops compute with when the JIT is off."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.simd.target import F32_LANES, I8_LANES, I16_LANES, I32_LANES, U8_LANES


@dataclass(frozen=True)
class Kind:
    """The type of a vector: "f32", "i32", "i16", "i8", "u8" or "mask"; element type; number of lanes."""

    name: str
    dtype: np.dtype
    lanes: int

    @property
    def bits(self) -> int:
        return self.dtype.itemsize * 8


F32 = Kind("f32", np.dtype(np.float32), F32_LANES)
I32 = Kind("i32", np.dtype(np.int32), I32_LANES)
I16 = Kind("i16", np.dtype(np.int16), I16_LANES)
I8 = Kind("i8", np.dtype(np.int8), I8_LANES)
U8 = Kind("u8", np.dtype(np.uint8), U8_LANES)
_NUMBERS = (F32, I32, I16, I8, U8)
_INTEGERS = (I32, I16, I8, U8)
_SIGNED = (F32, I32, I16, I8)


def mask_of(kind: Kind) -> Kind:
    """The type of a comparison of two such vectors."""
    return Kind("mask", np.dtype(np.bool_), kind.lanes)


class Vector:
    """Lanes of one kind, never changed. Its operators take vectors of the same kind, as the lowered ones do."""

    __hash__ = None
    __slots__ = ("kind", "lanes")

    def __init__(self, kind: Kind, lanes: Any) -> None:
        self.kind = kind
        self.lanes = np.asarray(lanes, kind.dtype)
        if self.lanes.shape != (kind.lanes,):
            raise TypeError(f"{kind.name} has {kind.lanes} lanes, not {self.lanes.shape}")

    def __repr__(self) -> str:
        return f"{self.kind.name}x{self.kind.lanes}({self.lanes.tolist()})"

    def __abs__(self) -> Vector:
        return self._unary(np.abs, _SIGNED)

    def __neg__(self) -> Vector:
        return self._unary(np.negative, _SIGNED)

    def __invert__(self) -> Vector:
        return self._unary(np.invert, (*_INTEGERS, self.kind if self.kind.name == "mask" else None))

    def __lshift__(self, count: int) -> Vector:
        return self._shift(np.left_shift, count)

    def __rshift__(self, count: int) -> Vector:
        return self._shift(np.right_shift, count)

    def _unary(self, apply: Callable[[np.ndarray], np.ndarray], allowed: tuple[Any, ...]) -> Vector:
        if self.kind not in allowed:
            raise TypeError(f"no {apply.__name__} of {self.kind.name}")
        return Vector(self.kind, apply(self.lanes))

    def _shift(self, apply: Callable[..., np.ndarray], count: int) -> Vector:
        if self.kind not in _INTEGERS:
            raise TypeError(f"no shift of {self.kind.name}")
        if not 0 <= operator.index(count) < self.kind.bits:
            raise ValueError(f"shift of {self.kind.name} by {count}")
        return Vector(self.kind, apply(self.lanes, self.kind.dtype.type(count)))


def same_kind(*vectors: Any, allowed: tuple[Kind, ...] = _NUMBERS) -> Kind:
    """The one kind that all operands are of.

    Raises:
        TypeError: one is no vector, of another kind, or the kind is not allowed.
    """
    kinds = {getattr(vector, "kind", None) for vector in vectors}
    (kind,) = kinds if len(kinds) == 1 else (None,)
    if kind not in allowed:
        raise TypeError(f"no such operation on {', '.join(map(repr, vectors))}")
    return kind


def _binary(apply: Callable[..., np.ndarray], allowed: tuple[Kind, ...], compares: bool) -> Callable[..., Vector]:
    def method(self: Vector, other: Vector) -> Vector:
        if isinstance(other, Tile):
            return NotImplemented
        masks = (self.kind,) if self.kind.name == "mask" and "bitwise" in apply.__name__ else ()
        kind = same_kind(self, other, allowed=(*allowed, *masks))
        with np.errstate(all="ignore"):
            lanes = apply(self.lanes, other.lanes)
        return Vector(mask_of(kind) if compares else kind, lanes)

    return method


for _name, _apply, _allowed in (
    ("add", np.add, _NUMBERS),
    ("sub", np.subtract, _NUMBERS),
    ("mul", np.multiply, (F32, I32, I16)),
    ("truediv", np.divide, (F32,)),
    ("and", np.bitwise_and, _INTEGERS),
    ("or", np.bitwise_or, _INTEGERS),
    ("xor", np.bitwise_xor, _INTEGERS),
):
    setattr(Vector, f"__{_name}__", _binary(_apply, _allowed, compares=False))
for _name, _apply in (
    ("lt", np.less),
    ("le", np.less_equal),
    ("gt", np.greater),
    ("ge", np.greater_equal),
    ("eq", np.equal),
    ("ne", np.not_equal),
):
    setattr(Vector, f"__{_name}__", _binary(_apply, _NUMBERS, compares=True))


class Tile:
    """Vectors, or the scalars that go with them, side by side; ops and operators go through them one by one."""

    __hash__ = None
    __slots__ = ("items",)

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = tuple(items)

    def __repr__(self) -> str:
        return f"tile{self.items!r}"

    def __getitem__(self, position: int) -> Any:
        if not 0 <= position < len(self.items):
            raise IndexError(f"vector {position} of {len(self.items)}")
        return self.items[position]


def over_tiles(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, done for each vector of the tiles among its operands.

    Raises (when called):
        TypeError: tiles of different lengths.
    """

    @functools.wraps(function)
    def each(*operands: Any) -> Any:
        counts = {len(operand.items) for operand in operands if isinstance(operand, Tile)}
        if not counts:
            return function(*operands)
        if len(counts) > 1:
            raise TypeError(f"tiles of different lengths: {sorted(counts)}")
        rows = [operand.items if isinstance(operand, Tile) else [operand] * max(counts) for operand in operands]
        results = [function(*row) for row in zip(*rows, strict=True)]
        return None if results[0] is None else Tile(results)

    return each


for _name in ("abs", "neg", "invert", "lshift", "rshift", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Tile, f"__{_name}__", over_tiles(getattr(operator, f"__{_name}__")))
for _name in ("add", "sub", "mul", "truediv", "and", "or", "xor"):
    _apply = getattr(operator, f"__{_name}__")
    setattr(Tile, f"__{_name}__", over_tiles(_apply))
    setattr(Tile, f"__r{_name}__", over_tiles(lambda right, left, apply=_apply: apply(left, right)))


def lift(namespace: dict[str, Any]) -> None:
    """Let every public function of a module, given by its globals, go over tiles."""
    for name, function in list(namespace.items()):
        if inspect.isfunction(function) and function.__module__ == namespace["__name__"] and not name.startswith("_"):
            namespace[name] = over_tiles(function)

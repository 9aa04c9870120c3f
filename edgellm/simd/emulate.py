"""The vocabulary as plain Python, for `NUMBA_DISABLE_JIT=1`: the same names and results, every access checked.

What a kernel must not do shows here: an access outside its array is an IndexError, a wrong type a TypeError, an
operand outside what the op allows (`dot_u7i8` of a byte over 127, a table index over 15) a ValueError. The words on
each op stand beside its lowering. What touches memory is in `emulate_memory.py`.
"""

from __future__ import annotations

import operator
import threading
import time
from typing import Any

import numpy as np

from edgellm.simd.emulate_vector import F32, I8, I16, I32, U8, Kind, Tile, Vector, lift, mask_of, same_kind

_ATOMIC = threading.Lock()


def _splat(kind: Kind, scalar: Any) -> Vector:
    if kind is F32:
        return Vector(F32, np.full(F32.lanes, np.float32(scalar)))
    low = int(operator.index(scalar)) & ((1 << kind.bits) - 1)
    return Vector(kind, np.full(kind.lanes, low, np.uint64).astype(kind.dtype))


def zero_f32() -> Vector:
    return _splat(F32, 0.0)


def zero_i32() -> Vector:
    return _splat(I32, 0)


def splat_f32(scalar: float) -> Vector:
    return _splat(F32, scalar)


def splat_i32(scalar: int) -> Vector:
    return _splat(I32, scalar)


def splat_i16(scalar: int) -> Vector:
    return _splat(I16, scalar)


def splat_i8(scalar: int) -> Vector:
    return _splat(I8, scalar)


def splat_u8(scalar: int) -> Vector:
    return _splat(U8, scalar)


def first_n(count: int) -> Vector:
    return Vector(mask_of(F32), np.arange(F32.lanes) < operator.index(count))


def fma(a: Vector, b: Vector, c: Vector) -> Vector:
    """Rounded once: the product is exact in float64, and its sum is rounded to odd before it is rounded to float32."""
    same_kind(a, b, c, allowed=(F32,))
    with np.errstate(all="ignore"):
        product, addend = a.lanes.astype(np.float64) * b.lanes, c.lanes.astype(np.float64)
        total = product + addend
        back = total - product
        error = (product - (total - back)) + (addend - back)
        inexact = (error != 0) & np.isfinite(total) & (total.view(np.int64) & 1 == 0)
        odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
        return Vector(F32, np.where(inexact, odd, total).astype(np.float32))


def minimum(a: Vector, b: Vector) -> Vector:
    return Vector(same_kind(a, b), np.where(a.lanes < b.lanes, a.lanes, b.lanes))


def maximum(a: Vector, b: Vector) -> Vector:
    return Vector(same_kind(a, b), np.where(a.lanes > b.lanes, a.lanes, b.lanes))


def sqrt(value: Vector) -> Vector:
    same_kind(value, allowed=(F32,))
    with np.errstate(all="ignore"):
        return Vector(F32, np.sqrt(value.lanes))


def select(mask: Vector, yes: Vector, no: Vector) -> Vector:
    kind = same_kind(yes, no)
    same_kind(mask, allowed=(mask_of(kind),))
    return Vector(kind, np.where(mask.lanes, yes.lanes, no.lanes))


def _fold(value: Vector, combine: Any) -> Any:
    same_kind(value, allowed=(F32, I32))
    lanes = value.lanes
    with np.errstate(all="ignore"):
        while len(lanes) > 1:
            lanes = combine(*np.split(lanes, 2))
    return lanes[0]


def reduce_add(value: Vector) -> Any:
    return _fold(value, np.add)


def reduce_max(value: Vector) -> Any:
    return _fold(value, lambda a, b: np.where(a > b, a, b))


def convert_f32(value: Vector) -> Vector:
    same_kind(value, allowed=(I32,))
    return Vector(F32, value.lanes.astype(np.float32))


def round_i32(value: Vector) -> Vector:
    return convert_i32(value)


def convert_i32(value: Vector) -> Vector:
    same_kind(value, allowed=(F32,))
    rounded = np.rint(np.nan_to_num(value.lanes.astype(np.float64), nan=0.0, posinf=2.0**31, neginf=-(2.0**31)))
    return Vector(I32, rounded.clip(-(2**31), 2**31 - 1).astype(np.int32))


def _bitcast(kind: Kind, value: Vector) -> Vector:
    same_kind(value)
    return Vector(kind, value.lanes.view(kind.dtype))


def bitcast_f32(value: Vector) -> Vector:
    return _bitcast(F32, value)


def bitcast_i32(value: Vector) -> Vector:
    return _bitcast(I32, value)


def bitcast_i16(value: Vector) -> Vector:
    return _bitcast(I16, value)


def bitcast_i8(value: Vector) -> Vector:
    return _bitcast(I8, value)


def bitcast_u8(value: Vector) -> Vector:
    return _bitcast(U8, value)


_WIDER = {I8: I16, U8: I16, I16: I32}


def widen_low(value: Vector) -> Vector:
    kind = same_kind(value, allowed=tuple(_WIDER))
    return Vector(_WIDER[kind], value.lanes[: kind.lanes // 2])


def widen_high(value: Vector) -> Vector:
    kind = same_kind(value, allowed=tuple(_WIDER))
    return Vector(_WIDER[kind], value.lanes[kind.lanes // 2 :])


def low_nibbles(value: Vector) -> Vector:
    return Vector(same_kind(value, allowed=(U8,)), value.lanes & 15)


def high_nibbles(value: Vector) -> Vector:
    return Vector(same_kind(value, allowed=(U8,)), value.lanes >> 4)


def table_lookup(table: Vector, index: Vector) -> Vector:
    kind = same_kind(table, allowed=(U8, I8))
    same_kind(index, allowed=(U8,))
    if (index.lanes > 15).any():
        raise ValueError(f"table index over 15: {index!r}")
    return Vector(kind, table.lanes[np.arange(kind.lanes) // 16 * 16 + index.lanes])


def interleave_low(a: Vector, b: Vector) -> Vector:
    kind = same_kind(a, b)
    return Vector(kind, np.stack([a.lanes, b.lanes], 1).ravel()[: kind.lanes])


def interleave_high(a: Vector, b: Vector) -> Vector:
    kind = same_kind(a, b)
    return Vector(kind, np.stack([a.lanes, b.lanes], 1).ravel()[kind.lanes :])


def concat_even(a: Vector, b: Vector) -> Vector:
    return Vector(same_kind(a, b), np.concatenate([a.lanes, b.lanes])[0::2])


def concat_odd(a: Vector, b: Vector) -> Vector:
    return Vector(same_kind(a, b), np.concatenate([a.lanes, b.lanes])[1::2])


def _dot(acc: Vector, a: Vector, b: Vector, kind: Kind) -> Vector:
    same_kind(acc, allowed=(I32,))
    same_kind(a, allowed=(kind,))
    same_kind(b, allowed=(I8,))
    sums = (a.lanes.astype(np.int32) * b.lanes).reshape(-1, 4).sum(1, dtype=np.int32)
    return Vector(I32, acc.lanes + sums)


def dot_u8i8(acc: Vector, u: Vector, s: Vector) -> Vector:
    return _dot(acc, u, s, U8)


def dot_u7i8(acc: Vector, u: Vector, s: Vector) -> Vector:
    result = _dot(acc, u, s, U8)
    if (u.lanes > 127).any():
        raise ValueError(f"dot_u7i8 of a byte over 127: {u!r}")
    return result


def dot_i8i8(acc: Vector, a: Vector, b: Vector) -> Vector:
    return _dot(acc, a, b, I8)


def dot_i16i16(acc: Vector, a: Vector, b: Vector) -> Vector:
    same_kind(acc, allowed=(I32,))
    same_kind(a, b, allowed=(I16,))
    sums = (a.lanes.astype(np.int64) * b.lanes).reshape(-1, 2).sum(1)
    return Vector(I32, (acc.lanes + sums).astype(np.int32))


def _cell(array: np.ndarray, index: int) -> int:
    if array.ndim != 1 or array.dtype != np.int64:
        raise TypeError(f"atomics are of int64 arrays, not {array.dtype}")
    if not 0 <= index < len(array):
        raise IndexError(f"cell {index} of {len(array)}")
    return index


def atomic_add(array: np.ndarray, index: int, value: int) -> int:
    with _ATOMIC:
        before = array[_cell(array, index)]
        array[index] = before + value
        return before


def atomic_load(array: np.ndarray, index: int) -> int:
    return array[_cell(array, index)]


def atomic_store(array: np.ndarray, index: int, value: int) -> None:
    with _ATOMIC:
        array[_cell(array, index)] = value


def pause() -> None:
    time.sleep(0)


def yield_thread() -> None:
    time.sleep(0)


def ticks() -> int:
    return time.perf_counter_ns()


lift(globals())


def tile(value: Vector, count: int) -> Tile:
    same_kind(value)
    return Tile([value] * count)


def indices(start: int, step: int, count: int) -> Tile:
    return Tile(operator.index(start) + operator.index(step) * position for position in range(count))


def tile_set(vectors: Tile, position: int, value: Vector) -> Tile:
    same_kind(value, vectors[position])
    return Tile(value if at == position else vector for at, vector in enumerate(vectors.items))

"""The vocabulary as plain Python, for `NUMBA_DISABLE_JIT=1`: the same names and results, every access checked.

What a kernel must not do shows here: an access outside its array is an IndexError, a wrong type a TypeError, an
operand outside what the op allows (`dot_u7i8` of a byte over 127, a table index over 15) a ValueError. The words on
each op stand beside its lowering.
"""

from __future__ import annotations

import operator
import threading
import time
from typing import Any

import numpy as np

from edgellm.simd.emulate_vector import F32, I8, I16, I32, U8, Kind, Vector, mask_of, same_kind

_ATOMIC = threading.Lock()
_HALVES = (np.uint16, np.int16)
_WORDS = (np.int32, np.uint32)
_OWN = {F32: (np.float32,), I32: _WORDS, I16: _HALVES, I8: (), U8: ()}


def _bytes(array: np.ndarray, index: int, size: int, dtypes: tuple[Any, ...], written: bool = False) -> np.ndarray:
    """A view of the `size` bytes from element `index` on."""
    if array.ndim != 1 or not array.flags.c_contiguous or array.dtype not in (*dtypes, np.uint8, np.int8):
        raise TypeError(f"no vector access to {array.dtype}[{array.ndim} dimensions] here")
    if written and not array.flags.writeable:
        raise TypeError("the array is read-only")
    start = operator.index(index) * array.itemsize
    if start < 0 or start + size > array.nbytes:
        raise IndexError(f"vector access to bytes {start}..{start + size} of {array.nbytes}")
    return array.view(np.uint8)[start : start + size]


def _read(array: np.ndarray, index: int, dtype: Any, lanes: int, dtypes: tuple[Any, ...]) -> np.ndarray:
    return np.frombuffer(_bytes(array, index, lanes * np.dtype(dtype).itemsize, dtypes).tobytes(), dtype)


def _write(array: np.ndarray, index: int, lanes: np.ndarray, dtypes: tuple[Any, ...]) -> None:
    _bytes(array, index, lanes.nbytes, dtypes, written=True)[:] = np.frombuffer(lanes.tobytes(), np.uint8)


def _load(kind: Kind) -> Any:
    return lambda array, index: Vector(kind, _read(array, index, kind.dtype, kind.lanes, _OWN[kind]))


load_f32, load_i32, load_i16, load_i8, load_u8 = (_load(kind) for kind in (F32, I32, I16, I8, U8))


def load_f16(array: np.ndarray, index: int) -> Vector:
    return Vector(F32, _read(array, index, np.float16, F32.lanes, _HALVES).astype(np.float32))


def load_bf16(array: np.ndarray, index: int) -> Vector:
    words = _read(array, index, np.uint16, F32.lanes, _HALVES).astype(np.uint32) << 16
    return Vector(F32, words.view(np.float32))


def load_i8_to_i32(array: np.ndarray, index: int) -> Vector:
    return Vector(I32, _read(array, index, np.int8, I32.lanes, ()))


def load_u8_to_i32(array: np.ndarray, index: int) -> Vector:
    return Vector(I32, _read(array, index, np.uint8, I32.lanes, ()))


def load_n_f32(array: np.ndarray, index: int, count: int) -> Vector:
    lanes = np.zeros(F32.lanes, np.float32)
    lanes[:count] = _read(array, index, np.float32, _tail(count), (np.float32,))
    return Vector(F32, lanes)


def _tail(count: int) -> int:
    if not 0 <= count <= F32.lanes:
        raise ValueError(f"{count} of {F32.lanes} lanes")
    return count


def broadcast_f32(array: np.ndarray, index: int) -> Vector:
    return Vector(F32, np.repeat(_read(array, index, np.float32, 1, (np.float32,)), F32.lanes))


def broadcast_i32(array: np.ndarray, index: int) -> Vector:
    return Vector(I32, np.repeat(_read(array, index, np.int32, 1, _WORDS), I32.lanes))


def broadcast_i8x4(array: np.ndarray, index: int) -> Vector:
    return Vector(I8, np.tile(_read(array, index, np.int8, 4, _WORDS), I8.lanes // 4))


def broadcast_u8x16(array: np.ndarray, index: int) -> Vector:
    return Vector(U8, np.tile(_read(array, index, np.uint8, 16, ()), U8.lanes // 16))


def store(array: np.ndarray, index: int, value: Vector) -> None:
    _write(array, index, value.lanes, _OWN[same_kind(value)])


def store_n(array: np.ndarray, index: int, value: Vector, count: int) -> None:
    same_kind(value, allowed=(F32,))
    _write(array, index, value.lanes[: _tail(count)], (np.float32,))


def store_f16(array: np.ndarray, index: int, value: Vector) -> None:
    same_kind(value, allowed=(F32,))
    with np.errstate(all="ignore"):
        _write(array, index, value.lanes.astype(np.float16), _HALVES)


def store_bf16(array: np.ndarray, index: int, value: Vector) -> None:
    same_kind(value, allowed=(F32,))
    word = value.lanes.view(np.uint32)
    high = word >> 16
    rounded = (word + np.uint32(0x7FFF) + (high & 1)) >> 16
    lanes = np.where(np.isnan(value.lanes), high | 0x40, rounded)
    _write(array, index, lanes.astype(np.uint16), _HALVES)


def store_i32_to_i8(array: np.ndarray, index: int, value: Vector) -> None:
    same_kind(value, allowed=(I32,))
    _write(array, index, value.lanes.clip(-128, 127).astype(np.int8), ())


def prefetch(array: np.ndarray, index: int) -> None:
    if operator.index(index) < 0:
        raise IndexError(f"prefetch at {index}")


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


def tile(value: Vector, count: int) -> tuple[Vector, ...]:
    return (value,) * count


def tile_set(vectors: tuple[Vector, ...], position: int, value: Vector) -> tuple[Vector, ...]:
    same_kind(value, allowed=(vectors[0].kind,))
    if not 0 <= position < len(vectors):
        raise IndexError(f"vector {position} of {len(vectors)}")
    return (*vectors[:position], value, *vectors[position + 1 :])


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


def ticks() -> int:
    return time.perf_counter_ns()

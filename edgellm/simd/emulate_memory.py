"""Loads and stores as plain Python: no access leaves its array, no array is taken for another type's."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from edgellm.simd.emulate_vector import F32, I8, I16, I32, U8, Kind, Vector, lift, same_kind

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


def store_i32_to_i16(array: np.ndarray, index: int, value: Vector) -> None:
    same_kind(value, allowed=(I32,))
    _write(array, index, value.lanes.clip(-(2**15), 2**15 - 1).astype(np.int16), _HALVES)


def store_quads(array: np.ndarray, index: int, stride: int, value: Vector) -> None:
    same_kind(value, allowed=(I32,))
    for quad, word in enumerate(value.lanes.astype(np.int8).view(np.int32)):
        _write(array, index + quad * stride, word[None], (np.int32,))


def prefetch(array: np.ndarray, index: int) -> None:
    if operator.index(index) < 0:
        raise IndexError(f"prefetch at {index}")


def prefetch_l2(array: np.ndarray, index: int) -> None:
    prefetch(array, index)


lift(globals())

"""What each op on memory, and each of a whole warp, computes, in NumPy: see `twins.py`.

A warp's 32 lanes are the elements of every array, so what lanes give each other is plain indexing. Memory is u32 and
changed in place; `cp_async*` copy at once, waits and barriers do nothing, for one warp needs none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellm.backends.cuda.ptx.twins import Lanes, _bf16_halves, _halves

_LANE = np.arange(32)


def _words(memory: Lanes, index: Lanes, count: int) -> tuple[Lanes, ...]:
    return tuple(memory[index + k] for k in range(count))


def _floats(memory: Lanes, index: Lanes, count: int) -> tuple[Lanes, ...]:
    return tuple(word.view(np.float32) for word in _words(memory, index, count))


def _store(memory: Lanes, index: Lanes, *values: Lanes) -> None:
    for k, value in enumerate(values):
        memory[index + k] = value.view(np.uint32)


def ldg_u16(memory: Lanes, index: Lanes) -> Lanes:
    return memory[index].astype(np.uint16)


def ldg32(memory: Lanes, index: Lanes) -> Lanes:
    return memory[index]


def ldg_f32(memory: Lanes, index: Lanes) -> Lanes:
    return memory[index].view(np.float32)


def ldg64(memory: Lanes, index: Lanes) -> tuple[Lanes, ...]:
    return _words(memory, index, 2)


def ldg128(memory: Lanes, index: Lanes) -> tuple[Lanes, ...]:
    return _words(memory, index, 4)


def ld64_f32(memory: Lanes, index: Lanes) -> tuple[Lanes, ...]:
    return _floats(memory, index, 2)


def ld128_f32(memory: Lanes, index: Lanes) -> tuple[Lanes, ...]:
    return _floats(memory, index, 4)


def store(memory: Lanes, index: Lanes, *values: Lanes) -> None:
    _store(memory, index, *values)


def nothing(*_: Lanes) -> None:
    return None


def _matrices(memory: Lanes, index: Lanes, count: int, *, transposed: bool) -> tuple[Lanes, ...]:
    """Each matrix [8, 8] of 16 bits: its rows begin at the words that eight lanes give."""
    found = []
    for matrix in range(count):
        rows = np.stack([memory[start : start + 4].view(np.uint16) for start in index[8 * matrix : 8 * matrix + 8]])
        rows = rows.T if transposed else rows
        found.append(np.ascontiguousarray(rows).view(np.uint32).reshape(32))
    return tuple(found)


def ldmatrix_x1(memory: Lanes, index: Lanes) -> Lanes:
    return _matrices(memory, index, 1, transposed=False)[0]


def ldmatrix_x2(memory: Lanes, index: Lanes) -> tuple[Lanes, ...]:
    return _matrices(memory, index, 2, transposed=False)


def ldmatrix_x4(memory: Lanes, index: Lanes) -> tuple[Lanes, ...]:
    return _matrices(memory, index, 4, transposed=False)


def ldmatrix_x2_trans(memory: Lanes, index: Lanes) -> tuple[Lanes, ...]:
    return _matrices(memory, index, 2, transposed=True)


def ldmatrix_x4_trans(memory: Lanes, index: Lanes) -> tuple[Lanes, ...]:
    return _matrices(memory, index, 4, transposed=True)


def cp_async4(target: Lanes, to: Lanes, source: Lanes, start: Lanes) -> None:
    _store(target, to, *_words(source, start, 1))


def cp_async8(target: Lanes, to: Lanes, source: Lanes, start: Lanes) -> None:
    _store(target, to, *_words(source, start, 2))


def cp_async16(target: Lanes, to: Lanes, source: Lanes, start: Lanes) -> None:
    _store(target, to, *_words(source, start, 4))


def cp_async16_part(target: Lanes, to: Lanes, source: Lanes, start: Lanes, count: Lanes) -> None:
    for lane in _LANE:
        given = source[start[lane] : start[lane] + 4].copy().view(np.uint8)
        given[count[lane] :] = 0
        target[to[lane] : to[lane] + 4] = given.view(np.uint32)


def _fragment(registers: tuple[Lanes, ...], halves: Any, rows: int) -> Lanes:
    """16-bit registers of the A operand (two or four) or of B (one or two, transposed) as a matrix [rows, k]."""
    blocks = rows // 8
    matrix = np.zeros((rows, 8 * len(registers) // blocks))
    for number, register in enumerate(registers):
        row, k = 8 * (number % blocks) + _LANE // 4, 8 * (number // blocks) + 2 * (_LANE % 4)
        matrix[row, k], matrix[row, k + 1] = halves(register).T
    return matrix


def _sums(matrix: Lanes, c: tuple[Lanes, ...]) -> tuple[Lanes, ...]:
    """The lanes' shares of matrix [16 or 8, 8] + C, in float32 or int32."""
    found = []
    for number, before in enumerate(c):
        share = matrix[8 * (number // 2) + _LANE // 4, 2 * (_LANE % 4) + number % 2]
        found.append((before.astype(matrix.dtype) + share).astype(before.dtype))
    return tuple(found)


def mma_m16n8k16_f16(*given: Lanes) -> tuple[Lanes, ...]:
    return _sums(_fragment(given[:4], _halves, 16) @ _fragment(given[4:6], _halves, 8).T, given[6:])


def mma_m16n8k16_bf16(*given: Lanes) -> tuple[Lanes, ...]:
    return _sums(_fragment(given[:4], _bf16_halves, 16) @ _fragment(given[4:6], _bf16_halves, 8).T, given[6:])


def mma_m16n8k8_f16(*given: Lanes) -> tuple[Lanes, ...]:
    return _sums(_fragment(given[:2], _halves, 16) @ _fragment(given[2:3], _halves, 8).T, given[3:])


def _bytes_of(registers: tuple[Lanes, ...], rows: int) -> Lanes:
    blocks = rows // 8
    matrix = np.zeros((rows, 16 * len(registers) // blocks), np.int64)
    for number, register in enumerate(registers):
        row, k = 8 * (number % blocks) + _LANE // 4, 16 * (number // blocks) + 4 * (_LANE % 4)
        for place, column in enumerate(np.ascontiguousarray(register).view(np.int8).reshape(32, 4).T):
            matrix[row, k + place] = column
    return matrix


def mma_m16n8k32_s8(*given: Lanes) -> tuple[Lanes, ...]:
    return _sums(_bytes_of(given[:4], 16) @ _bytes_of(given[4:6], 8).T, given[6:])


def mma_m8n8k16_s8(*given: Lanes) -> tuple[Lanes, ...]:
    return _sums(_bytes_of(given[:1], 8) @ _bytes_of(given[1:2], 8).T, given[2:])


def shfl_xor(value: Lanes, mask: Lanes) -> Lanes:
    return value[_LANE ^ mask % 32]


def shfl_down(value: Lanes, distance: Lanes) -> Lanes:
    return value[np.where(_LANE + distance % 32 < 32, _LANE + distance % 32, _LANE)]


def shfl_up(value: Lanes, distance: Lanes) -> Lanes:
    return value[np.where(_LANE - (distance % 32).astype(int) >= 0, _LANE - (distance % 32).astype(int), _LANE)]


def shfl(value: Lanes, lane: Lanes) -> Lanes:
    return value[lane % 32]


def ballot(condition: Lanes) -> Lanes:
    return np.full(32, sum(1 << lane for lane in range(32) if condition[lane]), np.uint32)


def lane_id() -> Lanes:
    return _LANE.astype(np.uint32)


def _atomic(memory: Lanes, index: Lanes, value: Lanes, change: Any) -> Lanes:
    """One lane after the other, the lowest first."""
    before = np.zeros(32, np.uint32)
    for lane in _LANE:
        before[lane] = memory[index[lane]]
        memory[index[lane]] = change(int(before[lane]), int(value[lane])) & 0xFFFFFFFF
    return before


def atomic_add(memory: Lanes, index: Lanes, value: Lanes) -> Lanes:
    return _atomic(memory, index, value, lambda old, given: old + given)


def atomic_inc(memory: Lanes, index: Lanes, last: Lanes) -> Lanes:
    return _atomic(memory, index, last, lambda old, given: 0 if old >= given else old + 1)


def atomic_max(memory: Lanes, index: Lanes, value: Lanes) -> Lanes:
    return _atomic(memory, index, value, max)


ldg_u32 = ld_acquire = ldg32
ld64 = lds64 = ldg64
ld128 = lds128 = ldg128
lds64_f32, lds128_f32 = ld64_f32, ld128_f32
st64 = st128 = st64_f32 = st128_f32 = sts64 = sts128 = sts64_f32 = sts128_f32 = st_release = store
shfl_xor_u32, shfl_u32 = shfl_xor, shfl
atomic_add_shared = atomic_add
cp_async_commit = cp_async_wait0 = cp_async_wait1 = cp_async_wait2 = cp_async_wait3 = prefetch_l2 = nothing
bar_sync = warp_barrier = fence = griddep_wait = griddep_launch = nothing

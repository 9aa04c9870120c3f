"""Tiles of prefill attention on the tensor cores: what a warp of `attention_prefill.py` does with 16 rows of queries.

With g = lane / 4 and t = lane % 4 a lane has rows g and g + 8 of its warp's queries. Local arrays of a lane:

    query     u32 [width / 16 * 4]      A fragments of the queries, float16
    score     float32 [keys / 8 * 4]    rows g: elements 0, 1, rows g + 8: elements 2, 3 of each eight keys
    weighted  float32 [columns / 8 * 4] likewise of each eight columns of the values
    state     float32 [4]               largest score of either row, in units of log2, and the lane's share of the sums

What belongs to the block's rows lies in shared memory, `table`, u32 [3][64]: where the row begins in the queries, where
in the output (NOBODY where no token has it), and its token's number.

Tiles of keys and of values are float16 in shared memory, rows `pitch` = elements + 8 apart, so that the eight rows that
`ldmatrix` reads at once lie in different banks. Keys are the B operand as they lie, values transposed on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgellm.backends.cuda.kernels.partials import PREFILL_ROWS
from edgellm.backends.cuda.kernels.rows import half_scale
from edgellm.backends.cuda.kernels.stored import STORAGES
from edgellm.backends.cuda.kernels.visible import oldest_of, wrapped
from edgellm.backends.cuda.ptx import (
    cp_async16_part,
    device,
    ex2,
    f32,
    fabs,
    fmax,
    ldmatrix_x4,
    ldmatrix_x4_trans,
    mma_m16n8k8_f16,
    mma_m16n8k16_f16,
    pack_f16x2,
    quad_max,
    quad_sum,
    rcp,
    sts128,
    tanh,
    u32,
    u64,
)

_TWO, _FOUR, _EIGHT, _SIXTEEN = u32(2), u32(4), u32(8), u32(16)
_NEVER = f32(float("-inf"))
PADDING = 8
#: Parts of `table`.
SOURCE, TARGET, NUMBER = 0, PREFILL_ROWS, 2 * PREFILL_ROWS
NOBODY = 0xFFFFFFFF
_SOURCE, _TARGET, _NUMBER, _NOBODY = u32(SOURCE), u32(TARGET), u32(NUMBER), u32(NOBODY)


@dataclass(frozen=True)
class TileShape:
    """Sizes of a block's tiles.

    Attributes:
        width: elements of a head, padded.
        columns: of the values that a block has.
        keys: of a tile.
        threads: of a block.
    """

    width: int
    columns: int
    keys: int
    threads: int = 128


@device
def _product_k16(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
    return mma_m16n8k16_f16(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3)


@device
def _product_k8(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
    d0, d1, d2, d3 = mma_m16n8k8_f16(a0, a1, b0, c0, c1, c2, c3)
    return mma_m16n8k8_f16(a2, a3, b1, d0, d1, d2, d3)


def product(turing: bool) -> Any:
    """D = A B + C of 16 x 8 x 16: one instruction, on Turing two."""
    return _product_k8 if turing else _product_k16


def begin_copy(keys: int, elements: int, threads: int) -> Any:
    """Device function: begin copying a tile of float16 rows; what is beyond the run or the row becomes 0."""
    row_chunks = elements // 8
    step, passes, pitch = threads // row_chunks, keys * row_chunks // threads, elements + PADDING

    @device
    def copy(tile, cache, scales, places, first, column, thread):
        head_rows, depth, base, start, modulus, count = places
        chunk = u32(u32(thread & u32(row_chunks - 1)) * _EIGHT)
        row = u32(thread // u32(row_chunks))
        inside = u32(column + chunk) < depth
        for part in range(u32(passes)):
            to = u32(row + part * u32(step))
            token = u32(first + to)
            ok = inside and token < count
            place = head_rows + u64(wrapped(base, u32(start + (token if ok else first)), modulus))
            source = place * u64(depth) + u64(u32(column + chunk) if ok else u32(0))
            cp_async16_part(tile, to * u32(pitch) + chunk, cache, source, u32(16) if ok else u32(0))

    return copy


def load_tile(storage: str, keys: int, elements: int, threads: int) -> Any:
    """Device function as `begin_copy`'s, through registers: for int8, which becomes float16, and for Turing."""
    words, floats, scaled = STORAGES[storage].words, STORAGES[storage].floats, STORAGES[storage].scaled
    row_chunks = elements // 8
    step, passes, pitch = threads // row_chunks, keys * row_chunks // threads, elements + PADDING

    @device
    def load(tile, cache, scales, places, first, column, thread):
        head_rows, depth, base, start, modulus, count = places
        chunk = u32(u32(thread & u32(row_chunks - 1)) * _EIGHT)
        row = u32(thread // u32(row_chunks))
        inside = u32(column + chunk) < depth
        for part in range(u32(passes)):
            to = u32(row + part * u32(step))
            token = u32(first + to)
            a, b, c, d = u32(0), u32(0), u32(0), u32(0)
            if inside and token < count:
                place = head_rows + u64(wrapped(base, u32(start + token), modulus))
                a, b, c, d = words(cache, place * u64(depth) + u64(u32(column + chunk)))
                if scaled:
                    scale = scales[place]
                    e0, e1, e2, e3, e4, e5, e6, e7 = floats(a, b, c, d)
                    a, b = pack_f16x2(e0 * scale, e1 * scale), pack_f16x2(e2 * scale, e3 * scale)
                    c, d = pack_f16x2(e4 * scale, e5 * scale), pack_f16x2(e6 * scale, e7 * scale)
            sts128(tile, to * u32(pitch) + chunk, a, b, c, d)

    return load


@device
def no_wait():
    """Where nothing is copied there is nothing to wait for."""


def load_queries(width: int) -> Any:
    """Device function: the A fragments of the lane's rows of x, and the powers of two they were divided by."""

    @device
    def row_scale(x, at, head_dim, t):
        largest = f32(0.0)
        column = t
        while column < head_dim:
            largest = fmax(largest, fabs(x[at + column]) if at != _NOBODY else f32(0.0))
            column = u32(column + _FOUR)
        return half_scale(quad_max(largest))

    @device
    def pair(x, at, column, head_dim, multiplier):
        ok = at != _NOBODY
        low = x[at + column] * multiplier if ok and column < head_dim else f32(0.0)
        high = x[at + column + u32(1)] * multiplier if ok and u32(column + u32(1)) < head_dim else f32(0.0)
        return pack_f16x2(low, high)

    @device
    def load(query, x, table, row, head_dim, t):
        first, second = table[_SOURCE + row], table[_SOURCE + row + _EIGHT]
        first_multiplier, first_scale = row_scale(x, first, head_dim, t)
        second_multiplier, second_scale = row_scale(x, second, head_dim, t)
        for block in range(u32(width // 8)):
            column = u32(block * _EIGHT + t * _TWO)
            query[block * _TWO] = pair(x, first, column, head_dim, first_multiplier)
            query[block * _TWO + u32(1)] = pair(x, second, column, head_dim, second_multiplier)
        return first_scale, second_scale

    return load


def find_scores(shape: TileShape, turing: bool) -> Any:
    """Device function: score = query . keys of the tile, unscaled."""
    multiply, pitch, keys, width = product(turing), shape.width + PADDING, shape.keys, shape.width

    @device
    def find(score, query, tile, lane):
        row = u32(u32(u32(lane >> _FOUR) * _EIGHT) + u32(lane & u32(7)))
        column = u32(u32(lane >> u32(3) & u32(1)) * _EIGHT)
        for i in range(u32(keys // 2)):
            score[i] = f32(0.0)
        for j in range(u32(keys // 16)):
            for k in range(u32(width // 16)):
                at = (j * _SIXTEEN + row) * u32(pitch) + k * _SIXTEEN + column
                b0, b1, b2, b3 = ldmatrix_x4(tile, at)
                a, s = k * _FOUR, j * _EIGHT
                score[s], score[s + u32(1)], score[s + _TWO], score[s + u32(3)] = multiply(
                    query[a], query[a + u32(1)], query[a + _TWO], query[a + u32(3)], b0, b1,
                    score[s], score[s + u32(1)], score[s + _TWO], score[s + u32(3)],
                )  # fmt: skip
                s = j * _EIGHT + _FOUR
                score[s], score[s + u32(1)], score[s + _TWO], score[s + u32(3)] = multiply(
                    query[a], query[a + u32(1)], query[a + _TWO], query[a + u32(3)], b2, b3,
                    score[s], score[s + u32(1)], score[s + _TWO], score[s + u32(3)],
                )  # fmt: skip

    return find


def weigh_scores(shape: TileShape) -> Any:
    """Device function: scores become weights exp2(score - largest) and what was summed before shrinks accordingly."""
    keys, columns = shape.keys, shape.columns

    @device
    def weigh(score, weighted, state, first_factor, second_factor, cap, edge, key, last, table, row, window, t):
        """`key` is the number of the tile's first key, `last` that of the last key of the run + 1. Masks only where
        `edge` says that some key of the tile is not seen by all rows."""
        for i in range(u32(keys // 8)):
            for e in range(_TWO):
                score[i * _FOUR + e] = score[i * _FOUR + e] * first_factor
                score[i * _FOUR + e + _TWO] = score[i * _FOUR + e + _TWO] * second_factor
        if cap != f32(0.0):
            for i in range(u32(keys // 2)):
                score[i] = cap * tanh(score[i])
        if edge:
            first_high, second_high = table[_NUMBER + row], table[_NUMBER + row + _EIGHT]
            first_low, second_low = oldest_of(first_high, window), oldest_of(second_high, window)
            for i in range(u32(keys // 8)):
                for e in range(_TWO):
                    number = u32(key + u32(i * _EIGHT + t * _TWO + e))
                    inside = number < last
                    ok = inside and number >= first_low and number <= first_high
                    score[i * _FOUR + e] = score[i * _FOUR + e] if ok else _NEVER
                    ok = inside and number >= second_low and number <= second_high
                    score[i * _FOUR + e + _TWO] = score[i * _FOUR + e + _TWO] if ok else _NEVER
        for half in range(_TWO):
            most = state[half]
            for i in range(u32(keys // 8)):
                most = fmax(most, fmax(score[i * _FOUR + half * _TWO], score[i * _FOUR + half * _TWO + u32(1)]))
            most = quad_max(most)
            shrink = ex2(state[half] - most)
            state[half] = most
            total = state[half + _TWO] * shrink
            for i in range(u32(keys // 8)):
                for e in range(_TWO):
                    weight = ex2(score[i * _FOUR + half * _TWO + e] - most)
                    score[i * _FOUR + half * _TWO + e] = weight
                    total += weight
            state[half + _TWO] = total
            for i in range(u32(columns // 8)):
                for e in range(_TWO):
                    weighted[i * _FOUR + half * _TWO + e] = weighted[i * _FOUR + half * _TWO + e] * shrink

    return weigh


def add_values(shape: TileShape, turing: bool) -> Any:
    """Device function: weighted += weights . values of the tile."""
    multiply, pitch, keys, columns = product(turing), shape.columns + PADDING, shape.keys, shape.columns

    @device
    def add(weighted, score, tile, lane):
        row = u32(lane & u32(15))
        column = u32(u32(lane >> _FOUR) * _EIGHT)
        for j in range(u32(keys // 16)):
            s = j * _EIGHT
            a0 = pack_f16x2(score[s], score[s + u32(1)])
            a1 = pack_f16x2(score[s + _TWO], score[s + u32(3)])
            a2 = pack_f16x2(score[s + _FOUR], score[s + u32(5)])
            a3 = pack_f16x2(score[s + u32(6)], score[s + u32(7)])
            for d in range(u32(columns // 16)):
                at = (j * _SIXTEEN + row) * u32(pitch) + d * _SIXTEEN + column
                b0, b1, b2, b3 = ldmatrix_x4_trans(tile, at)
                w = d * _EIGHT
                weighted[w], weighted[w + u32(1)], weighted[w + _TWO], weighted[w + u32(3)] = multiply(
                    a0, a1, a2, a3, b0, b1,
                    weighted[w], weighted[w + u32(1)], weighted[w + _TWO], weighted[w + u32(3)],
                )  # fmt: skip
                w = d * _EIGHT + _FOUR
                weighted[w], weighted[w + u32(1)], weighted[w + _TWO], weighted[w + u32(3)] = multiply(
                    a0, a1, a2, a3, b2, b3,
                    weighted[w], weighted[w + u32(1)], weighted[w + _TWO], weighted[w + u32(3)],
                )  # fmt: skip

    return add


def store_rows(shape: TileShape) -> Any:
    """Device function: what the rows have found goes to the output, columns from `first` on."""
    columns = shape.columns

    @device
    def store_row(out, at, weighted, half, share, first, head_dim, t):
        if at != _NOBODY:
            for block in range(u32(columns // 8)):
                column = u32(first + u32(block * _EIGHT + t * _TWO))
                for e in range(_TWO):
                    if u32(column + e) < head_dim:
                        out[at + column + e] = weighted[block * _FOUR + half * _TWO + e] * share

    @device
    def store(out, weighted, state, table, row, first, head_dim, t):
        share = rcp(quad_sum(state[2]))
        store_row(out, table[_TARGET + row], weighted, u32(0), share, first, head_dim, t)
        share = rcp(quad_sum(state[3]))
        store_row(out, table[_TARGET + row + _EIGHT], weighted, u32(1), share, first, head_dim, t)

    return store

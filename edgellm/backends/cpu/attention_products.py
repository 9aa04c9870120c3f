"""The two products of attention over one chunk of `CHUNK` rows, for each way that keys and values are stored.

    scores    s[r][key]  = sum over d of q[r][d] k[key][d]      keys are lanes: broadcast q, no sum across lanes
    values    a[r][d]    = a[r][d] * fade[r] + sum over keys of p[r][key] v[key][d]

Four queries at a time meet `BLOCKS` vectors, so that a vector that was loaded and converted serves four fused
multiply-adds; queries left over go one by one, or as four where three are left (there is room for four).

A query is a row of a float32 array `work`; queries at work[q + r * depth], scores at work[s + r * CHUNK], sums at
work[a + r * depth], fades at work[f + r].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgellm.backends.cpu.cache import BLOCKS, CHUNK, GROUP
from edgellm.backends.cpu.jit import kernel
from edgellm.simd import (
    F32_LANES,
    broadcast_f32,
    convert_f32,
    fma,
    indices,
    load_f16,
    load_f32,
    load_i8_to_i32,
    store,
    tile,
    zero_f32,
)

#: Queries of a register tile.
QUERIES = 4


@kernel
def _load_int8(data, at):
    """Codes as floats; their scales are applied to the scores and to the weights."""
    return convert_f32(load_i8_to_i32(data, at))


def _make(load: Callable[..., Any], item_bytes: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The kernels `scores` and `values` for elements of `item_bytes` that `load` reads from bytes."""
    step = F32_LANES * item_bytes

    @kernel
    def scores_four(work, q, s, depth, head_dim, data, at):
        a0 = tile(zero_f32(), BLOCKS)
        a1 = tile(zero_f32(), BLOCKS)
        a2 = tile(zero_f32(), BLOCKS)
        a3 = tile(zero_f32(), BLOCKS)
        for d in range(head_dim):
            keys = load(data, indices(at + d * BLOCKS * step, step, BLOCKS))
            a0 = fma(keys, broadcast_f32(work, q + d), a0)
            a1 = fma(keys, broadcast_f32(work, q + depth + d), a1)
            a2 = fma(keys, broadcast_f32(work, q + 2 * depth + d), a2)
            a3 = fma(keys, broadcast_f32(work, q + 3 * depth + d), a3)
        store(work, indices(s, F32_LANES, BLOCKS), a0)
        store(work, indices(s + CHUNK, F32_LANES, BLOCKS), a1)
        store(work, indices(s + 2 * CHUNK, F32_LANES, BLOCKS), a2)
        store(work, indices(s + 3 * CHUNK, F32_LANES, BLOCKS), a3)

    @kernel
    def scores_one(work, q, s, depth, head_dim, data, at):
        sums = tile(zero_f32(), BLOCKS)
        for d in range(head_dim):
            keys = load(data, indices(at + d * BLOCKS * step, step, BLOCKS))
            sums = fma(keys, broadcast_f32(work, q + d), sums)
        store(work, indices(s, F32_LANES, BLOCKS), sums)

    @kernel
    def scores(work, q, s, queries, depth, head_dim, data, at, first, last):
        """Scores of the keys first .. last - 1 of the chunk whose keys are at byte `at` (of others too)."""
        for block in range(first // GROUP * GROUP, last, GROUP):
            keys = at + block * depth * item_bytes
            r = 0
            while r + QUERIES - 1 <= queries:  # three left over are done as four
                scores_four(work, q + r * depth, s + r * CHUNK + block, depth, head_dim, data, keys)
                r += QUERIES
            for left in range(r, queries):
                scores_one(work, q + left * depth, s + left * CHUNK + block, depth, head_dim, data, keys)

    def of_width(count):
        @kernel
        def values_four(work, s, a, f, depth, data, at, first, last):
            a0 = load_f32(work, indices(a, F32_LANES, count)) * broadcast_f32(work, f)
            a1 = load_f32(work, indices(a + depth, F32_LANES, count)) * broadcast_f32(work, f + 1)
            a2 = load_f32(work, indices(a + 2 * depth, F32_LANES, count)) * broadcast_f32(work, f + 2)
            a3 = load_f32(work, indices(a + 3 * depth, F32_LANES, count)) * broadcast_f32(work, f + 3)
            for n in range(first, last):
                v = load(data, indices(at + n * count * step, step, count))
                a0 = fma(v, broadcast_f32(work, s + n), a0)
                a1 = fma(v, broadcast_f32(work, s + CHUNK + n), a1)
                a2 = fma(v, broadcast_f32(work, s + 2 * CHUNK + n), a2)
                a3 = fma(v, broadcast_f32(work, s + 3 * CHUNK + n), a3)
            store(work, indices(a, F32_LANES, count), a0)
            store(work, indices(a + depth, F32_LANES, count), a1)
            store(work, indices(a + 2 * depth, F32_LANES, count), a2)
            store(work, indices(a + 3 * depth, F32_LANES, count), a3)

        @kernel
        def values_one(work, s, a, f, depth, data, at, first, last):
            sums = load_f32(work, indices(a, F32_LANES, count)) * broadcast_f32(work, f)
            for n in range(first, last):
                v = load(data, indices(at + n * count * step, step, count))
                sums = fma(v, broadcast_f32(work, s + n), sums)
            store(work, indices(a, F32_LANES, count), sums)

        return values_four, values_one

    many_four, many_one = of_width(BLOCKS)
    single_four, _ = of_width(1)

    @kernel
    def values(work, s, a, f, queries, depth, data, at, first, last):
        """Add the values of rows first .. last - 1 of the chunk whose values are at byte `at`."""
        whole = depth // GROUP * GROUP
        for d in range(0, whole, GROUP):
            part = at + d * CHUNK * item_bytes
            r = 0
            while r + QUERIES - 1 <= queries:
                many_four(work, s + r * CHUNK, a + d + r * depth, f + r, depth, data, part, first, last)
                r += QUERIES
            for left in range(r, queries):
                many_one(work, s + left * CHUNK, a + d + left * depth, f + left, depth, data, part, first, last)
        for d in range(whole, depth, F32_LANES):
            part = at + d * CHUNK * item_bytes
            for r in range(0, queries, QUERIES):
                single_four(work, s + r * CHUNK, a + d + r * depth, f + r, depth, data, part, first, last)

    return scores, values


scores_f32, values_f32 = _make(load_f32, 4)
scores_f16, values_f16 = _make(load_f16, 2)
scores_i8, values_i8 = _make(_load_int8, 1)


@kernel
def widen(out, at, data, source, count, storage):
    """`count` stored elements from byte `source` on as float32 from byte `at` of `out` on; whole vectors."""
    if storage == 0:
        for i in range(0, count, F32_LANES):
            store(out, at + 4 * i, load_f32(data, source + 4 * i))
    elif storage == 1:
        for i in range(0, count, F32_LANES):
            store(out, at + 4 * i, load_f16(data, source + 2 * i))
    else:
        for i in range(0, count, F32_LANES):
            store(out, at + 4 * i, _load_int8(data, source + i))

"""A chunk of attention for many queries in 16-bit integers, *words*: where a processor multiplies pairs of words into
32-bit lanes (vpdpwssd), an instruction does twice the products it does with floats.

    scores   s[r][key] = (q[r] . k[key]) of words, times |q[r]| |k[key]| / R^2      R = 32767
    values   a[r][d]   = a[r][d] * fade[r] + (p[r] . v[d]) of words, times a scale of r and one of d

A query and a key are scaled to the length R each, so no sum of their products leaves 32 bits (Cauchy-Schwarz:
|q.k| <= R^2 < 2^30) and no element leaves 16. A query's weights are scaled so that the largest is at most R and their
sum at most 2^17, an element of the values so that the largest is 2^14 - 1: their sums stay below 2^31. Scales are taken
anew for each chunk. That loses less than keys and values have lost already by being stored as float16 (nmse 2e-8
against 1e-7 with keys and queries drawn alike, 1.5e-6 against 3e-5 with scores of hundreds): a test holds it to that.

    words, a thread's bytes    [CHUNK][depth] keys, later values | [queries][depth] queries | [queries][CHUNK] weights
    keys                       [CHUNK / G][depth / 2][G][2]
    values                     [depth / G][CHUNK / 2][G][2], and [CHUNK / 2][L][2] for each vector that is left over
    scales                     behind the softmax's statistics: [queries] of queries, then of keys, later of values

L are the lanes of a vector and G = `GROUP`; a pair of words is two neighbouring elements of a key, or two neighbouring
rows of values. Rows that no query sees may hold anything: their scores are masked, so their weights are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgellm.backends.cpu.attention_products import QUERIES
from edgellm.backends.cpu.attention_softmax import weigh, weight_of
from edgellm.backends.cpu.cache import BLOCKS, CHUNK, GROUP
from edgellm.backends.cpu.jit import kernel
from edgellm.simd import (
    F32_LANES,
    TARGET,
    bitcast_i16,
    broadcast_f32,
    broadcast_i32,
    convert_f32,
    dot_i16i16,
    fma,
    indices,
    load_f16,
    load_f32,
    load_i8_to_i32,
    load_i16,
    maximum,
    minimum,
    reduce_add,
    round_i32,
    splat_f32,
    splat_i32,
    sqrt,
    store,
    store_i32_to_i16,
    tile,
    zero_f32,
    zero_i32,
)

#: Where words are multiplied faster than floats.
WORDS = TARGET.isa in ("avx512vnni", "avxvnni")
_WORD = 2
_PAIR = 4
_VECTOR = F32_LANES * _PAIR
_LENGTH = 32767.0
_LARGEST_VALUE = 16383.0
_LARGEST_SUM = 131072.0
#: Of the arrays that stand behind each other, see `attention_softmax`.
_BASES, _TOPS, _ADDED, _QUERY_SCALES, _SCALES = 3, 4, 5, 6, 7
_FLOAT16, _INT8 = 1, 2
#: In place of zero where a scale would be infinite.
_TINY = 1e-30
_SCALE_BYTES = 4


@kernel
def _join(low, high):
    """Two vectors of integers of 16 bits as pairs, `low` first."""
    return (low & splat_i32(0xFFFF)) | (high << 16)


@kernel
def narrow_queries(words, at, work, q, statistics, capacity, queries, depth):
    """Queries at work[q] as words, and what each one's words are multiples of."""
    at += CHUNK * depth * _WORD
    scales = statistics + _QUERY_SCALES * capacity
    for r in range(queries):
        squares = zero_f32()
        for i in range(0, depth, F32_LANES):
            x = load_f32(work, q + r * depth + i)
            squares = fma(x, x, squares)
        length = reduce_add(squares) ** 0.5
        work[scales + r] = length / _LENGTH
        factor = splat_f32(_LENGTH / max(length, _TINY))
        for i in range(0, depth, F32_LANES):
            whole = round_i32(load_f32(work, q + r * depth + i) * factor)
            store_i32_to_i16(words, at + (r * depth + i) * _WORD, whole)


def _make(item_bytes: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The kernels `narrow_keys` and `narrow_values` for float16 or int8 with scales, of `item_bytes` each."""
    step = F32_LANES * item_bytes
    coded = item_bytes == 1

    @kernel
    def load(data, at):
        if coded:
            return convert_f32(load_i8_to_i32(data, at))
        return load_f16(data, at)

    @kernel
    def narrow_keys(words, at, work, scales, data, keys, key_scales, depth, first, last):
        """A chunk's keys first .. last - 1 (others too) as words from byte `at` on, multiples of work[scales + key]."""
        for block in range(first // GROUP * GROUP, last, GROUP):
            source = keys + block * depth * item_bytes
            squares = tile(zero_f32(), BLOCKS)
            for d in range(depth):
                x = load(data, indices(source + d * BLOCKS * step, step, BLOCKS))
                squares = fma(x, x, squares)
            length = sqrt(squares)
            factor = splat_f32(_LENGTH) / maximum(length, splat_f32(_TINY))
            length = length * splat_f32(1.0 / _LENGTH)
            if coded:
                places = indices(key_scales + block * _SCALE_BYTES, F32_LANES * _SCALE_BYTES, BLOCKS)
                length = length * load_f32(data, places)
            store(work, indices(scales + block, F32_LANES, BLOCKS), length)
            target = at + block * depth * _WORD
            for d in range(0, depth, 2):
                low = load(data, indices(source + d * BLOCKS * step, step, BLOCKS))
                high = load(data, indices(source + (d + 1) * BLOCKS * step, step, BLOCKS))
                pairs = _join(round_i32(low * factor), round_i32(high * factor))
                store(words, indices(target + d * BLOCKS * F32_LANES * _WORD, _VECTOR, BLOCKS), pairs)

    def of_width(count):
        @kernel
        def value(data, at, value_scales, n):
            x = load(data, indices(at + n * count * step, step, count))
            if coded:
                return x * broadcast_f32(data, value_scales + n * _SCALE_BYTES)
            return x

        @kernel
        def narrow(words, target, work, scales, data, at, value_scales, first, last):
            largest = tile(zero_f32(), count)
            for n in range(first, last):
                largest = maximum(abs(value(data, at, value_scales, n)), largest)
            factor = splat_f32(_LARGEST_VALUE) / maximum(largest, splat_f32(_TINY))
            store(work, indices(scales, F32_LANES, count), largest * splat_f32(1.0 / _LARGEST_VALUE))
            for n in range(first // 2 * 2, last, 2):
                low = value(data, at, value_scales, n) * factor
                high = value(data, at, value_scales, n + 1) * factor
                pairs = _join(round_i32(low), round_i32(high))
                store(words, indices(target + n * count * F32_LANES * _WORD, _VECTOR, count), pairs)

        return narrow

    narrow_tile, narrow_vector = of_width(BLOCKS), of_width(1)

    @kernel
    def narrow_values(words, at, work, scales, data, values, value_scales, depth, first, last):
        """A chunk's values of rows first .. last - 1 as words from byte `at` on, multiples of work[scales + d]."""
        whole = depth // GROUP * GROUP
        for d in range(0, whole, GROUP):
            source, target = values + d * CHUNK * item_bytes, at + d * CHUNK * _WORD
            narrow_tile(words, target, work, scales + d, data, source, value_scales, first, last)
        for d in range(whole, depth, F32_LANES):
            source, target = values + d * CHUNK * item_bytes, at + d * CHUNK * _WORD
            narrow_vector(words, target, work, scales + d, data, source, value_scales, first, last)

    return narrow_keys, narrow_values


narrow_keys_f16, narrow_values_f16 = _make(2)
narrow_keys_i8, narrow_values_i8 = _make(1)


def _make_dots(count: int) -> Callable[..., Any]:
    """The products of four queries with `count` vectors."""

    @kernel(forceinline=True)
    def dots(words, left, row_bytes, at, pairs):
        """Four rows of words from byte `left` on, `row_bytes` apart, times the pairs of words from byte `at` on."""
        a0 = tile(zero_i32(), count)
        a1 = tile(zero_i32(), count)
        a2 = tile(zero_i32(), count)
        a3 = tile(zero_i32(), count)
        for pair in range(pairs):
            right = load_i16(words, indices(at + pair * count * _VECTOR, _VECTOR, count))
            one = left + pair * _PAIR
            a0 = dot_i16i16(a0, right, bitcast_i16(broadcast_i32(words, one)))
            a1 = dot_i16i16(a1, right, bitcast_i16(broadcast_i32(words, one + row_bytes)))
            a2 = dot_i16i16(a2, right, bitcast_i16(broadcast_i32(words, one + 2 * row_bytes)))
            a3 = dot_i16i16(a3, right, bitcast_i16(broadcast_i32(words, one + 3 * row_bytes)))
        return a0, a1, a2, a3

    return dots


_dots_tile, _dots_vector = _make_dots(BLOCKS), _make_dots(1)


@kernel
def _scores_four(work, s, query_scales, key_scales, words, q, depth, at):
    a0, a1, a2, a3 = _dots_tile(words, q, depth * _WORD, at, depth // 2)
    scales = load_f32(work, indices(key_scales, F32_LANES, BLOCKS))
    store(work, indices(s, F32_LANES, BLOCKS), convert_f32(a0) * (scales * broadcast_f32(work, query_scales)))
    s += CHUNK
    store(work, indices(s, F32_LANES, BLOCKS), convert_f32(a1) * (scales * broadcast_f32(work, query_scales + 1)))
    s += CHUNK
    store(work, indices(s, F32_LANES, BLOCKS), convert_f32(a2) * (scales * broadcast_f32(work, query_scales + 2)))
    s += CHUNK
    store(work, indices(s, F32_LANES, BLOCKS), convert_f32(a3) * (scales * broadcast_f32(work, query_scales + 3)))


@kernel
def _scores(work, s, query_scales, key_scales, words, q, queries, depth, at, first, last):
    """Scores work[s + r * CHUNK + key] of the keys first .. last - 1 (of others too); room for whole register tiles."""
    for block in range(first // GROUP * GROUP, last, GROUP):
        keys = at + block * depth * _WORD
        for r in range(0, queries, QUERIES):
            _scores_four(
                work, s + r * CHUNK + block, query_scales + r, key_scales + block, words, q + r * depth * _WORD, depth,
                keys
            )  # fmt: skip


@kernel
def _scale_weights(work, tops, bases, sums, queries):
    """What each query's weights are multiplied by, in place of its largest score; 1 over that in place of their sum."""
    for i in range(0, queries, F32_LANES):
        largest = weight_of(load_f32(work, tops + i) - load_f32(work, bases + i))
        total = load_f32(work, sums + i)
        tiny = splat_f32(_TINY)
        factor = minimum(splat_f32(_LENGTH) / maximum(largest, tiny), splat_f32(_LARGEST_SUM) / maximum(total, tiny))
        store(work, tops + i, factor)
        store(work, sums + i, splat_f32(1.0) / factor)


@kernel
def _narrow_weights(words, at, work, s, factors, queries, first, last):
    """Weights work[s + r * CHUNK + key] as words from byte `at` on, times work[factors + r]."""
    for r in range(queries):
        factor = broadcast_f32(work, factors + r)
        for v in range(first // GROUP * GROUP, last, GROUP):
            whole = round_i32(load_f32(work, indices(s + r * CHUNK + v, F32_LANES, BLOCKS)) * factor)
            store_i32_to_i16(words, indices(at + (r * CHUNK + v) * _WORD, F32_LANES * _WORD, BLOCKS), whole)


def _make_values(count: int, dots: Callable[..., Any]) -> Callable[..., Any]:
    """Four queries' sums over `count` vectors of values."""

    @kernel
    def add(work, a, fade, inverse, sums):
        faded = load_f32(work, indices(a, F32_LANES, count)) * broadcast_f32(work, fade)
        store(work, indices(a, F32_LANES, count), fma(sums, broadcast_f32(work, inverse), faded))

    @kernel
    def values_four(work, a, fades, inverses, value_scales, words, p, depth, at, first, last):
        begin, end = first // 2, (last + 1) // 2
        left, right = p + begin * _PAIR, at + begin * count * _VECTOR
        a0, a1, a2, a3 = dots(words, left, CHUNK * _WORD, right, end - begin)
        scales = load_f32(work, indices(value_scales, F32_LANES, count))
        add(work, a, fades, inverses, convert_f32(a0) * scales)
        add(work, a + depth, fades + 1, inverses + 1, convert_f32(a1) * scales)
        add(work, a + 2 * depth, fades + 2, inverses + 2, convert_f32(a2) * scales)
        add(work, a + 3 * depth, fades + 3, inverses + 3, convert_f32(a3) * scales)

    return values_four


_values_tile, _values_vector = _make_values(BLOCKS, _dots_tile), _make_values(1, _dots_vector)


@kernel
def _values(work, a, fades, inverses, value_scales, words, p, queries, depth, at, first, last):
    """Fade the sums and add the values of rows first .. last - 1 by their weights."""
    whole = depth // GROUP * GROUP
    for d in range(0, whole, GROUP):
        part, scales = at + d * CHUNK * _WORD, value_scales + d
        for r in range(0, queries, QUERIES):
            _values_tile(
                work, a + d + r * depth, fades + r, inverses + r, scales, words, p + r * CHUNK * _WORD, depth, part,
                first, last
            )  # fmt: skip
    for d in range(whole, depth, F32_LANES):
        part, scales = at + d * CHUNK * _WORD, value_scales + d
        for r in range(0, queries, QUERIES):
            _values_vector(
                work, a + d + r * depth, fades + r, inverses + r, scales, words, p + r * CHUNK * _WORD, depth, part,
                first, last
            )  # fmt: skip


@kernel
def meet_chunk(
    work, s, a, statistics, capacity, queries, groups, depth, words, at, data, keys, values, key_scales, value_scales,
    storage, newest, window, first, last, cap
):  # fmt: skip
    """Let queries that `narrow_queries` has seen meet rows first .. last - 1 of a chunk: scores, weights, values."""
    q, scales = at + CHUNK * depth * _WORD, statistics + _SCALES * capacity
    p = q + capacity * depth * _WORD
    bases, tops = statistics + _BASES * capacity, statistics + _TOPS * capacity
    added = statistics + _ADDED * capacity
    if storage == _INT8:
        narrow_keys_i8(words, at, work, scales, data, keys, key_scales, depth, first, last)
    else:
        narrow_keys_f16(words, at, work, scales, data, keys, key_scales, depth, first, last)
    _scores(work, s, statistics + _QUERY_SCALES * capacity, scales, words, q, queries, depth, at, first, last)
    # int8's own scales are part of the words': none are left to be multiplied, as with float16
    weigh(
        work, s, statistics, capacity, queries, groups, newest, window, first, last, cap, data, key_scales,
        value_scales, _FLOAT16
    )  # fmt: skip
    _scale_weights(work, tops, bases, added, queries)
    _narrow_weights(words, p, work, s, tops, queries, first, last)
    if storage == _INT8:
        narrow_values_i8(words, at, work, scales, data, values, value_scales, depth, first, last)
    else:
        narrow_values_f16(words, at, work, scales, data, values, value_scales, depth, first, last)
    _values(work, a, statistics, added, scales, words, p, queries, depth, at, first, last)

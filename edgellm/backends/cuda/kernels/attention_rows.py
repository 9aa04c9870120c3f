"""The inner loops of attention of a few query heads over stored rows: what a warp of `attention_decode.py` does.

`lanes` lanes share a row, eight elements each: lane l has elements 8 (l % lanes) .. of the row of its group, l / lanes.
A group of lanes keeps for each query head the largest score so far (in units of log2), the sum of exp2(score - largest)
and the values so weighted (online softmax: Milakov and Gimelshein, arXiv:1805.02867), in local arrays

    query, weighted   float32 [heads * 8]        largest, mass   float32 [heads]

The queries come multiplied by the factor that makes a dot product a score in units of log2; where a softcap is between,
by that which it is applied to divided by the cap, and the score is cap * tanh(dot), `cap` in units of log2 (else 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgellm.backends.cuda.kernels.stored import STORAGES
from edgellm.backends.cuda.kernels.visible import wrapped
from edgellm.backends.cuda.ptx import (
    cuda,
    device,
    ex2,
    f32,
    fma,
    fmax,
    shfl_xor,
    tanh,
    u32,
    u64,
)

_EIGHT = u32(8)


@dataclass(frozen=True)
class RowAttention:
    """Device functions of one shape: see `_load_queries`, `_absorb_run`, `_absorb_own`, `_merge_groups`."""

    load_queries: Any
    absorb_run: Any
    absorb_own: Any
    merge_groups: Any


def row_attention(storage: str, lanes: int, heads: int, unroll: int, warps: int) -> RowAttention:
    """The functions for `lanes` lanes a row, `heads` query heads, `unroll` rows a lane at once, blocks of `warps`."""
    return RowAttention(
        _load_queries(lanes, heads),
        _absorb_run(storage, lanes, heads, unroll, warps),
        _absorb_own(lanes, heads),
        _merge_groups(lanes, heads),
    )


def _load_queries(lanes: int, heads: int) -> Any:
    width = u32(8 * lanes)

    @device
    def load_queries(query, stage, at, first, factor):
        """The lane's elements, from `first` on, of the heads that lie at stage[at], times factor."""
        for h in range(u32(heads)):
            for e in range(_EIGHT):
                query[h * _EIGHT + e] = stage[at + h * width + first + e] * factor

    return load_queries


def _finish_scores(lanes: int, count: int) -> Any:
    lane_bits = lanes.bit_length() - 1

    @device
    def finish_scores(score, cap):
        """Sum `count` dot products over the lanes of a row, and apply the softcap."""
        for i in range(u32(count)):
            for step in range(lane_bits):
                score[i] = score[i] + shfl_xor(score[i], u32(lanes >> (step + 1)))
        if cap != f32(0.0):
            for i in range(u32(count)):
                score[i] = cap * tanh(score[i])

    return finish_scores


def _absorb_run(storage: str, lanes: int, heads: int, unroll: int, warps: int) -> Any:
    groups = u32(32 // lanes)
    group_bits = u32(lanes.bit_length() - 1)
    warp_rows, stride = u32(32 // lanes * unroll), u32(32 // lanes * unroll * warps)
    words, floats, scaled = STORAGES[storage].words, STORAGES[storage].floats, STORAGES[storage].scaled
    finish_scores = _finish_scores(lanes, unroll * heads)
    scores, loaded = unroll * heads, 4 * unroll

    @device
    def load_rows(memory, loaded_words, at, u):
        a, b, c, d = words(memory, at)
        loaded_words[u * u32(4)] = a
        loaded_words[u * u32(4) + u32(1)] = b
        loaded_words[u * u32(4) + u32(2)] = c
        loaded_words[u * u32(4) + u32(3)] = d

    @device
    def unpack(row, loaded_words, u):
        w = u * u32(4)
        a, b, c, d, e, f, g, h = floats(
            loaded_words[w], loaded_words[w + u32(1)], loaded_words[w + u32(2)], loaded_words[w + u32(3)]
        )
        row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7] = a, b, c, d, e, f, g, h

    @device
    def absorb(score, value_scale, value_words, row, ok, query, weighted, largest, mass):
        for h in range(u32(heads)):
            most = largest[h]
            for u in range(u32(unroll)):
                most = fmax(most, score[u * u32(heads) + h]) if ok[u] else most
            shrink = ex2(largest[h] - most)
            largest[h] = most
            mass[h] = mass[h] * shrink
            for e in range(_EIGHT):
                weighted[h * _EIGHT + e] = weighted[h * _EIGHT + e] * shrink
            for u in range(u32(unroll)):
                weight = ex2(score[u * u32(heads) + h] - most) if ok[u] else f32(0.0)
                mass[h] = mass[h] + weight
                score[u * u32(heads) + h] = weight * value_scale[u]
        for u in range(u32(unroll)):
            unpack(row, value_words, u)
            for h in range(u32(heads)):
                for e in range(_EIGHT):
                    i = h * _EIGHT + e
                    weighted[i] = fma(score[u * u32(heads) + h], row[e], weighted[i])

    @device
    def absorb_run(
        keys, values, key_scales, value_scales, query, weighted, largest, mass, places, begin, stop, lane, warp, cap
    ):
        """Take in tokens begin .. stop - 1 of a run.

        `places` is (row of the cache where the head begins, elements a row, element where the lane begins, and base,
        start, modulus of the run's ring, see `visible.py`).
        """
        head_rows, depth, chunk, base, start, modulus = places
        score = cuda.local.array(scores, f32)
        key_words = cuda.local.array(loaded, u32)
        value_words = cuda.local.array(loaded, u32)
        key_scale = cuda.local.array(unroll, f32)
        value_scale = cuda.local.array(unroll, f32)
        ok = cuda.local.array(unroll, u32)
        row = cuda.local.array(8, f32)
        token = u32(begin + warp * warp_rows)
        while token < stop:
            for u in range(u32(unroll)):
                own = u32(token + u * groups + u32(lane >> group_bits))
                ok[u] = u32(1) if own < stop else u32(0)
                own = own if own < stop else u32(token)
                place = head_rows + u64(wrapped(base, u32(start + own), modulus))
                load_rows(keys, key_words, place * u64(depth) + u64(chunk), u)
                load_rows(values, value_words, place * u64(depth) + u64(chunk), u)
                key_scale[u] = key_scales[place] if scaled else f32(1.0)
                value_scale[u] = value_scales[place] if scaled else f32(1.0)
            for u in range(u32(unroll)):
                unpack(row, key_words, u)
                for h in range(u32(heads)):
                    dot = query[h * _EIGHT] * row[0]
                    for e in range(u32(7)):
                        dot = fma(query[h * _EIGHT + e + u32(1)], row[e + u32(1)], dot)
                    score[u * u32(heads) + h] = dot * key_scale[u]
            finish_scores(score, cap)
            absorb(score, value_scale, value_words, row, ok, query, weighted, largest, mass)
            token = u32(token + stride)

    return absorb_run


def _absorb_own(lanes: int, heads: int) -> Any:
    finish_scores = _finish_scores(lanes, heads)

    @device
    def absorb_own(query, weighted, largest, mass, stage, key, value, first, lane, cap):
        """Take in one row that lies in shared memory, key at stage[key], value at stage[value]; for the first group."""
        score = cuda.local.array(heads, f32)
        for h in range(u32(heads)):
            dot = f32(0.0)
            for e in range(_EIGHT):
                dot = fma(query[h * _EIGHT + e], stage[key + first + e], dot)
            score[h] = dot
        finish_scores(score, cap)
        for h in range(u32(heads)):
            most = fmax(largest[h], score[h]) if lane < u32(lanes) else largest[h]
            shrink = ex2(largest[h] - most)
            weight = ex2(score[h] - most) if lane < u32(lanes) else f32(0.0)
            largest[h] = most
            mass[h] = fma(mass[h], shrink, weight)
            for e in range(_EIGHT):
                i = h * _EIGHT + e
                weighted[i] = fma(weight, stage[value + first + e], weighted[i] * shrink)

    return absorb_own


def _merge_groups(lanes: int, heads: int) -> Any:
    group_bits = (32 // lanes).bit_length() - 1

    @device
    def merge_groups(weighted, largest, mass):
        """Put the groups of the warp together, in every lane."""
        for step in range(group_bits):
            for h in range(u32(heads)):
                other = shfl_xor(largest[h], u32(lanes << step))
                most = fmax(largest[h], other)
                keep, take = ex2(largest[h] - most), ex2(other - most)
                largest[h] = most
                mass[h] = mass[h] * keep + shfl_xor(mass[h], u32(lanes << step)) * take
                for e in range(_EIGHT):
                    i = h * _EIGHT + e
                    weighted[i] = weighted[i] * keep + shfl_xor(weighted[i], u32(lanes << step)) * take

    return merge_groups

"""Scores over a chunk become weights: the online softmax (arXiv:1805.02867, arXiv:2205.14135).

m is the largest score so far; weights are p = 2^(s - m), and what was summed under an older m fades by 2^(m_old - m):
queries carry the factor log2(e) in their scale, so that a power takes two instructions of three that e^x would.
Six arrays of `capacity` floats, one number a query, stand behind each other in `work`:

    fades    of this chunk
    largest  m
    sums     of the weights so far
    bases    what weights are measured from: m, but 0 while m is -infinity, where s - m would be NaN
    tops     the largest score of this chunk
    added    the sum of this chunk's weights
"""

from __future__ import annotations

from edgellm.backends.cpu.activation import cap_scores
from edgellm.backends.cpu.cache import BLOCKS, CHUNK, GROUP
from edgellm.backends.cpu.jit import kernel
from edgellm.simd import (
    F32_LANES,
    bitcast_f32,
    bitcast_i32,
    first_n,
    fma,
    indices,
    load_f32,
    maximum,
    reduce_add,
    reduce_max,
    select,
    splat_f32,
    store,
    tile,
    zero_f32,
)

LOWEST = float("-inf")
_INT8 = 2
_SCALE_BYTES = 4
#: Scores are multiplied by it once, through their queries.
LOG2_E = 1.44269504088896341
_ROUNDER = 12582912.0  # added, it leaves the nearest integer in the lowest bits
_LEAST = -126.0
#: Of 2^r for |r| <= 1/2, from r^5 down to r; 1 is the last. Least largest relative error: 9.2e-8 in exact arithmetic.
_POWERS = (
    1.3264679582789540e-3,
    9.6715027466416360e-3,
    5.5507339537143710e-2,
    2.4022242426872253e-1,
    6.9314700365066530e-1,
)


@kernel(forceinline=True)
def weight_of(x):
    """2^x of x <= 0, or NaN; 0 below -126. Within 2.1 units in the last place."""
    capped = maximum(splat_f32(_LEAST), x)
    shifted = capped + splat_f32(_ROUNDER)
    r = capped - (shifted - splat_f32(_ROUNDER))
    p = fma(splat_f32(_POWERS[0]), r, splat_f32(_POWERS[1]))
    p = fma(p, r, splat_f32(_POWERS[2]))
    p = fma(p, r, splat_f32(_POWERS[3]))
    p = fma(p, r, splat_f32(_POWERS[4]))
    y = bitcast_f32(bitcast_i32(fma(p, r, splat_f32(1.0))) + (bitcast_i32(shifted) << 23))
    return select(x < splat_f32(_LEAST), zero_f32(), y)


@kernel
def _mask_scores(work, s, begin, end, first, last, cap, data, key_scales, storage):
    """Finish one query's scores, of which it sees begin .. end - 1, the others become -infinity; the largest."""
    top = splat_f32(LOWEST)
    for v in range(first // GROUP * GROUP, last, GROUP):
        x = load_f32(work, indices(s + v, F32_LANES, BLOCKS))
        if storage == _INT8:
            x = x * load_f32(data, indices(key_scales + v * _SCALE_BYTES, F32_LANES * _SCALE_BYTES, BLOCKS))
        if cap != 0.0:
            x = cap_scores(x, cap)
        if begin > v or end < v + GROUP:
            seen = first_n(indices(end - v, -F32_LANES, BLOCKS)) & ~first_n(indices(begin - v, -F32_LANES, BLOCKS))
            x = select(seen, x, splat_f32(LOWEST))
        if storage == _INT8 or cap != 0.0 or begin > v or end < v + GROUP:
            store(work, indices(s + v, F32_LANES, BLOCKS), x)
        for b in range(BLOCKS):
            top = maximum(x[b], top)
    return reduce_max(top)


@kernel
def _exponentiate(work, s, base, first, last, data, value_scales, storage):
    """One query's weights from its scores; their sum."""
    below = splat_f32(base)
    total = tile(zero_f32(), BLOCKS)
    for v in range(first // GROUP * GROUP, last, GROUP):
        p = weight_of(load_f32(work, indices(s + v, F32_LANES, BLOCKS)) - below)
        total = total + p
        if storage == _INT8:
            p = p * load_f32(data, indices(value_scales + v * _SCALE_BYTES, F32_LANES * _SCALE_BYTES, BLOCKS))
        store(work, indices(s + v, F32_LANES, BLOCKS), p)
    added = total[0] + total[1]
    if BLOCKS == 4:
        added = added + (total[BLOCKS - 2] + total[BLOCKS - 1])
    return reduce_add(added)


@kernel
def weigh(
    work,
    s,
    fades,
    capacity,
    queries,
    groups,
    newest,
    window,
    first,
    last,
    cap,
    data,
    key_scales,
    value_scales,
    storage,
):
    """The weights of all queries over a chunk, in place of their scores at work[s + query * CHUNK].

    Query r sees the rows up to `newest` + r // groups, `window` of them (0: all), within first .. last - 1.
    """
    largest, sums, bases = fades + capacity, fades + 2 * capacity, fades + 3 * capacity
    tops, added = fades + 4 * capacity, fades + 5 * capacity
    for r in range(queries):
        own = newest + r // groups
        low = max(first, own - window + 1) if window > 0 else first
        high = min(last, own + 1)
        top = _mask_scores(work, s + r * CHUNK, low, high, first, last, cap, data, key_scales, storage)
        work[tops + r] = top
        work[bases + r] = max(work[largest + r], top)
    for i in range(0, queries, F32_LANES):
        now = load_f32(work, bases + i)
        base = select(now > splat_f32(LOWEST), now, zero_f32())
        store(work, fades + i, weight_of(load_f32(work, largest + i) - base))
        store(work, largest + i, now)
        store(work, bases + i, base)
    for r in range(queries):
        chunk = s + r * CHUNK
        work[added + r] = _exponentiate(work, chunk, work[bases + r], first, last, data, value_scales, storage)
    for i in range(0, queries, F32_LANES):
        store(work, sums + i, fma(load_f32(work, sums + i), load_f32(work, fades + i), load_f32(work, added + i)))

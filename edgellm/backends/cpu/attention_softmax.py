"""Scores over a chunk become weights: the online softmax (arXiv:1805.02867, arXiv:2205.14135).

m is the largest score so far; weights are p = e^(s - m), and what was summed under an older m fades by e^(m_old - m).
Four arrays of `capacity` floats, one number a query, stand behind each other in `work`:

    fades    of this chunk
    largest  m
    sums     of the weights so far
    bases    what weights are measured from: m, but 0 while m is -infinity, where s - m would be NaN
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
    splat_i32,
    store,
    tile,
    zero_f32,
)

LOWEST = float("-inf")
_INT8 = 2
_SCALE_BYTES = 4
_LOG2_E = 1.44269504088896341
_ROUNDER = 12582912.0  # added, it leaves the nearest integer in the lowest bits
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_LEAST = -87.3365402
_ONE_BITS = 127 << 23


@kernel(forceinline=True)
def weight_of(x):
    """e^x of x <= 0, or NaN: `simd.exp` without its upper end; 0 below -87.33."""
    capped = maximum(splat_f32(_LEAST), x)
    shifted = fma(capped, splat_f32(_LOG2_E), splat_f32(_ROUNDER))
    n = shifted - splat_f32(_ROUNDER)
    r = fma(n, splat_f32(-_LN2_LOW), fma(n, splat_f32(-_LN2_HIGH), capped))
    p = fma(splat_f32(1.9875691500e-4), r, splat_f32(1.3981999507e-3))
    p = fma(p, r, splat_f32(8.3334519073e-3))
    p = fma(p, r, splat_f32(4.1665795894e-2))
    p = fma(p, r, splat_f32(1.6666665459e-1))
    p = fma(p, r, splat_f32(5.0000001201e-1))
    y = fma(p, r * r, r) + splat_f32(1.0)
    y = y * bitcast_f32((bitcast_i32(shifted) << 23) + splat_i32(_ONE_BITS))
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
    for r in range(queries):
        own = newest + r // groups
        low = max(first, own - window + 1) if window > 0 else first
        high = min(last, own + 1)
        top = _mask_scores(work, s + r * CHUNK, low, high, first, last, cap, data, key_scales, storage)
        work[bases + r] = max(work[largest + r], top)
    for i in range(0, queries, F32_LANES):
        now = load_f32(work, bases + i)
        base = select(now > splat_f32(LOWEST), now, zero_f32())
        store(work, fades + i, weight_of(load_f32(work, largest + i) - base))
        store(work, largest + i, now)
        store(work, bases + i, base)
    for r in range(queries):
        added = _exponentiate(work, s + r * CHUNK, work[bases + r], first, last, data, value_scales, storage)
        work[sums + r] = work[sums + r] * work[fades + r] + added

"""One query's scores over a chunk become weights: the online softmax (arXiv:1805.02867, arXiv:2205.14135).

m is the largest score so far; weights are p = e^(s - m), and what was summed under an older m fades by e^(m_old - m).
"""

from __future__ import annotations

from edgellm.backends.cpu.activation import cap_scores
from edgellm.backends.cpu.cache import BLOCKS, GROUP
from edgellm.backends.cpu.jit import kernel
from edgellm.simd import (
    F32_LANES,
    exp,
    first_n,
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

_INT8 = 2
_SCALE_BYTES = 4
LOWEST = float("-inf")


@kernel
def finite(largest):
    """The score that weights are measured from: where all are -infinity, e^(s - m) would be NaN."""
    return largest if largest > LOWEST else 0.0


@kernel
def weigh(work, s, m, capacity, begin, end, first, last, cap, data, key_scales, value_scales, storage):
    """The weights of one query over a chunk from its scores at work[s], of which it sees begin .. end - 1.

    `m` is where its largest score so far stands in `work`; the sum of its weights is `capacity` behind it, its fade as
    far before it.
    """
    start = first // GROUP * GROUP
    if begin >= end:
        for v in range(start, last, F32_LANES):
            store(work, s + v, zero_f32())
        work[m - capacity] = 1.0
        return
    top = splat_f32(LOWEST)
    for v in range(start, last, GROUP):
        x = load_f32(work, indices(s + v, F32_LANES, BLOCKS))
        if storage == _INT8:
            x = x * load_f32(data, indices(key_scales + v * _SCALE_BYTES, F32_LANES * _SCALE_BYTES, BLOCKS))
        if cap != 0.0:
            x = cap_scores(x, cap)
        if begin > v or end < v + GROUP:
            seen = first_n(indices(end - v, -F32_LANES, BLOCKS)) & ~first_n(indices(begin - v, -F32_LANES, BLOCKS))
            x = select(seen, x, splat_f32(LOWEST))
        store(work, indices(s + v, F32_LANES, BLOCKS), x)
        for b in range(BLOCKS):
            top = maximum(x[b], top)
    before = work[m]
    largest = max(before, reduce_max(top))
    base = splat_f32(finite(largest))
    total = tile(zero_f32(), BLOCKS)
    for v in range(start, last, GROUP):
        p = exp(load_f32(work, indices(s + v, F32_LANES, BLOCKS)) - base)
        total = total + p
        if storage == _INT8:
            p = p * load_f32(data, indices(value_scales + v * _SCALE_BYTES, F32_LANES * _SCALE_BYTES, BLOCKS))
        store(work, indices(s + v, F32_LANES, BLOCKS), p)
    added = total[0] + total[1]
    if BLOCKS == 4:
        added = added + (total[BLOCKS - 2] + total[BLOCKS - 1])
    fade = reduce_max(exp(splat_f32(before) - base))
    work[m - capacity] = fade
    work[m] = largest
    work[m + capacity] = work[m + capacity] * fade + reduce_add(added)

"""RMSNorm (arXiv:1910.07467): out = x / sqrt(mean(x^2) + eps) * (offset + weight), over rows or over each head.

    act      float32: x and out are rows of `act`, at element `_offset` + token * `_stride`; out may be x
    weights  bytes of the arena: `group` float32 at byte `weight_offset`, the same for every run of `group` elements

A run of `group` elements, a whole row or one head, belongs to one thread. One token's row is left to one thread: a row
of 4096 takes 0.2 us, less than the barrier that two halves of it would need.
"""

from __future__ import annotations

from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.work import share
from edgellm.simd import (
    F32_LANES,
    fma,
    indices,
    load_f32,
    load_n_f32,
    reduce_add,
    rsqrt,
    splat_f32,
    store,
    store_n,
    tile,
    zero_f32,
)

#: Sums side by side, so that an addition need not wait for the one before.
SUMS = 4
_SUMMED = SUMS * F32_LANES
_FLOAT_BYTES = 4


@kernel
def inverse_rms(x, at, count, eps):
    """1 / sqrt(mean(x^2) + eps) of `count` floats from element `at` on, in every lane."""
    sums = tile(zero_f32(), SUMS)
    whole = count // _SUMMED * _SUMMED
    for i in range(at, at + whole, _SUMMED):
        values = load_f32(x, indices(i, F32_LANES, SUMS))
        sums = fma(values, values, sums)
    total = (sums[0] + sums[1]) + (sums[2] + sums[3])
    for i in range(at + whole, at + count, F32_LANES):
        rest = load_n_f32(x, i, min(at + count - i, F32_LANES))
        total = fma(rest, rest, total)
    return rsqrt(splat_f32(reduce_add(total)) / splat_f32(count) + splat_f32(eps))


@kernel(shared=True)
def op_rms_norm(
    act,
    out_offset,
    out_stride,
    x_offset,
    x_stride,
    weights,
    weight_offset,
    tokens,
    width,
    group,
    eps,
    offset,
    ith,
    nth,
):
    """Normalize rows of `width`, each run of `group` (a divisor of width; width itself for a whole row) on its own."""
    runs = width // group
    first, last = share(ith, nth, tokens * runs)
    lift = splat_f32(offset)
    whole = group // F32_LANES * F32_LANES
    for run in range(first, last):
        token, within = run // runs, run % runs * group
        source = x_offset + token * x_stride + within
        target = out_offset + token * out_stride + within
        scale = inverse_rms(act, source, group, eps)
        for i in range(0, whole, F32_LANES):
            weight = load_f32(weights, weight_offset + _FLOAT_BYTES * i) + lift
            store(act, target + i, load_f32(act, source + i) * scale * weight)
        if whole < group:
            rest = group - whole
            weight = load_n_f32(weights, weight_offset + _FLOAT_BYTES * whole, rest) + lift
            store_n(act, target + whole, load_n_f32(act, source + whole, rest) * scale * weight, rest)

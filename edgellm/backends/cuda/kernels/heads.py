"""One head of one token, in shared memory, in the hands of a warp: loaded, normalised, turned, measured.

`stage` is a float32 array of shared memory and `at` where the head begins in it. Lane l has elements l, l + 32 ...
(of a rotation: pairs), so every function that writes ends in a barrier of the warp. `depth` is head_dim with padding.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.angles import cos_sin
from edgellm.backends.cuda.ptx import (
    device,
    f32,
    f32_of_u32,
    fabs,
    fma,
    fmax,
    rcp,
    rsqrt,
    u32,
    warp_barrier,
    warp_max,
    warp_sum,
)

_WARP = u32(32)


@device
def take_head(stage, at, x, source, head_dim, depth, lane):
    """Load the head that begins at x[source] and pad it with zeros."""
    e = lane
    while e < depth:
        stage[at + e] = x[source + e] if e < head_dim else f32(0.0)
        e = u32(e + _WARP)
    warp_barrier()


@device
def normalise_head(stage, at, weight, head_dim, eps, offset, lane):
    """head / sqrt(mean(head^2) + eps) * (offset + weight), RMSNorm over the head (arXiv:1910.07467)."""
    total = f32(0.0)
    e = lane
    while e < head_dim:
        total = fma(stage[at + e], stage[at + e], total)
        e = u32(e + _WARP)
    factor = rsqrt(fma(warp_sum(total), rcp(f32_of_u32(head_dim)), eps))
    e = lane
    while e < head_dim:
        stage[at + e] = stage[at + e] * factor * (offset + weight[e])
        e = u32(e + _WARP)
    warp_barrier()


@device
def turn_head(out, target, stage, at, turns, half, number, depth, lane):
    """Turn pairs (j, j + half), j < half, of the head to that number, into out[target], which may be the head itself.

    RoFormer (arXiv:2104.09864), rotate-half pairing; elements from 2 * half on pass.
    """
    j = lane
    while j < half:
        cosine, sine = cos_sin(turns[j], number)
        a = stage[at + j]
        b = stage[at + half + j]
        out[target + j] = fma(a, cosine, -(b * sine))
        out[target + half + j] = fma(b, cosine, a * sine)
        j = u32(j + _WARP)
    e = u32(half + half + lane)
    while e < depth:
        out[target + e] = stage[at + e]
        e = u32(e + _WARP)
    warp_barrier()


@device
def divide(a, b, inverse):
    """a / b, given about 1 / b: the quotient is corrected by its remainder, so ties round as a true division's do."""
    quotient = a * inverse
    return fma(fma(-quotient, b, a), inverse, quotient)


@device
def head_scale(stage, at, depth, lane):
    """max |head| / 127, the scale of int8 storage; NaN where the head has a NaN or an infinity."""
    largest = f32(0.0)
    poison = f32(0.0)
    e = lane
    while e < depth:
        value = stage[at + e]
        largest = fmax(largest, fabs(value))
        poison += value - value  # 0, but NaN of what is not finite: `fmax` loses a NaN
        e = u32(e + _WARP)
    return divide(warp_max(largest), f32(127.0), f32(1.0 / 127.0)) + warp_sum(poison)

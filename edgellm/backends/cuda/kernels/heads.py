"""One head of one token, in shared memory, in the hands of a warp: loaded, normalised, turned, rounded for the cache.

`stage` is a float32 array of shared memory and `at` where the head begins in it. Lane l has elements l, l + 32 ...
(of a rotation: pairs), so every function that writes ends in a barrier of the warp. `depth` is head_dim with padding.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.angles import cos_sin
from edgellm.backends.cuda.ptx import (
    device,
    f32,
    f32_of_i32,
    f32_of_u32,
    f32_to_f16,
    fabs,
    fma,
    fmax,
    i8,
    rcp,
    round_i32,
    rsqrt,
    u32,
    warp_barrier,
    warp_max,
    warp_sum,
)

_WARP = u32(32)
_LEAST_SCALE = f32(1e-37)  # below it 1 / scale is no float32


@device
def take_head(stage, at, x, source, head_dim, depth, lane):
    """Load the head that begins at x[source] and pad it with zeros."""
    for e in range(lane, depth, _WARP):
        stage[at + e] = x[source + e] if e < head_dim else f32(0.0)
    warp_barrier()


@device
def normalise_head(stage, at, weight, head_dim, eps, offset, lane):
    """head / sqrt(mean(head^2) + eps) * (offset + weight), RMSNorm over the head (arXiv:1910.07467)."""
    total = f32(0.0)
    for e in range(lane, head_dim, _WARP):
        total = fma(stage[at + e], stage[at + e], total)
    factor = rsqrt(fma(warp_sum(total), rcp(f32_of_u32(head_dim)), eps))
    for e in range(lane, head_dim, _WARP):
        stage[at + e] = stage[at + e] * factor * (offset + weight[e])
    warp_barrier()


@device
def turn_head(out, target, stage, at, turns, half, number, depth, lane):
    """Turn pairs (j, j + half), j < half, of the head to that number, into out[target], which may be the head itself.

    RoFormer (arXiv:2104.09864), rotate-half pairing; elements from 2 * half on pass.
    """
    for j in range(lane, half, _WARP):
        cosine, sine = cos_sin(turns[j], number)
        a = stage[at + j]
        b = stage[at + half + j]
        out[target + j] = fma(a, cosine, -(b * sine))
        out[target + half + j] = fma(b, cosine, a * sine)
    for e in range(u32(half + half + lane), depth, _WARP):
        out[target + e] = stage[at + e]
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
    for e in range(lane, depth, _WARP):
        value = stage[at + e]
        largest = fmax(largest, fabs(value))
        poison += value - value  # 0, but NaN of what is not finite: `fmax` loses a NaN
    return divide(warp_max(largest), f32(127.0), f32(1.0 / 127.0)) + warp_sum(poison)


@device
def keep_float16(cache, row, stage, at, depth, lane):
    """Store the head, padding included, from cache[row] on as float16."""
    for e in range(lane, depth, _WARP):
        cache[row + e] = f32_to_f16(stage[at + e])


@device
def keep_int8(cache, row, stage, at, depth, lane):
    """Store the head, padding included, from cache[row] on as codes rint(x / scale); give the scale."""
    scale = head_scale(stage, at, depth, lane)
    divisor = scale if scale > _LEAST_SCALE else f32(1.0)
    inverse = rcp(divisor)
    for e in range(lane, depth, _WARP):
        cache[row + e] = i8(round_i32(divide(stage[at + e], divisor, inverse)))
    return scale


@device
def code_value(value, scale):
    """The value that int8 storage of this scale gives back."""
    divisor = scale if scale > _LEAST_SCALE else f32(1.0)
    return f32_of_i32(round_i32(divide(value, divisor, rcp(divisor)))) * scale

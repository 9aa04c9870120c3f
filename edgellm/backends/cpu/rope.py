"""Rotary position embedding (RoFormer, arXiv:2104.09864), rotate-half pairing.

    out[j]        = x[j] * cos[j] - x[j + half] * sin[j]
    out[j + half] = x[j + half] * cos[j] + x[j] * sin[j]        j < half = rotary_dim / 2; the rest of a head passes

Cosines and sines come from `model.rope.Rope.cos_sin`, which computes angles in float64: float32 [rows, half], one row a
token, from element `table` on. A head of a token belongs to one thread.
"""

from __future__ import annotations

from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.work import share
from edgellm.simd import F32_LANES, fma, load_f32, load_n_f32, store, store_n


@kernel
def turn_head(out, target, x, source, cos, sin, table, half):
    """Turn the first 2 * half elements of the head at x[source] into out[target]; they may be the same."""
    whole = half // F32_LANES * F32_LANES
    for j in range(0, whole, F32_LANES):
        c, s = load_f32(cos, table + j), load_f32(sin, table + j)
        a, b = load_f32(x, source + j), load_f32(x, source + half + j)
        store(out, target + j, fma(a, c, -(b * s)))
        store(out, target + half + j, fma(b, c, a * s))
    if whole < half:
        rest = half - whole
        c, s = load_n_f32(cos, table + whole, rest), load_n_f32(sin, table + whole, rest)
        a, b = load_n_f32(x, source + whole, rest), load_n_f32(x, source + half + whole, rest)
        store_n(out, target + whole, fma(a, c, -(b * s)), rest)
        store_n(out, target + half + whole, fma(b, c, a * s), rest)


@kernel(shared=True)
def op_rope(act, offset, stride, cos, sin, table, half, tokens, heads, head_dim, ith, nth):
    """Turn `heads` heads of each row in place: row t at act[offset + t * stride], angles at row t of the table."""
    first, last = share(ith, nth, tokens * heads)
    for unit in range(first, last):
        token = unit // heads
        at = offset + token * stride + unit % heads * head_dim
        turn_head(act, at, act, at, cos, sin, table + token * half, half)

"""Decode below sm_80, weights of 16 bits: y = W x in float32, one product at a time.

x lies in shared memory as float32, in a tile of 64 inputs for lane t of a quad its four inputs of each block in a row:
2t, 2t + 1, 2t + 8, 2t + 9. A weight takes a conversion and an FMA a token, and a load of x a quarter: two bytes of
weight pay for some three instructions, where a byte of 4-bit codes pays for about two.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.gemv_body import Product, declare_gemv
from edgellm.backends.cuda.kernels.gemv_dp4a import make_keep
from edgellm.backends.cuda.kernels.gemv_input import make_pair_stage
from edgellm.backends.cuda.kernels.gemv_plan import BELOW_AMPERE, CHUNK, OLD_WARPS
from edgellm.backends.cuda.ptx import cuda, device, f32, fma, lds128_f32, sts128_f32, u32, unpack_f16x2

#: Most instructions a weight of the hot loop, by tokens. A Xavier, of these devices the one that issues least beside
#: its bandwidth, has 20 in the time in which two bytes arrive; 10 of them can be float32's.
INSTRUCTIONS = {1: 3.0, 4: 9.0}


@device
def begin(lane, batch, stride):
    """Where a lane reads its inputs."""
    return u32((lane & u32(3)) * u32(16)), u32(0)


@device
def put(planes, sums, v, token, column, quad, quads):
    """Four inputs to their place; there are no sums of groups."""
    at = u32(column + (quad >> u32(4)) * u32(64) + (quad & u32(3)) * u32(16) + (quad & u32(12)))
    sts128_f32(planes, at, v[0], v[2], v[1], v[3])


def make_compute(tokens):
    """One step of a warp, 64 inputs: y [2 tokens] has rows g and g + 8 of each token, of the lane's inputs."""

    @device
    def compute(q, sz, y, planes, sums, place, step, stride, span, batch, lane):
        w = cuda.local.array(8, f32)
        for block in range(u32(4)):
            for i in range(u32(4)):
                w[2 * i], w[2 * i + 1] = unpack_f16x2(q[4 * block + i])
            at = u32(place[0] + step * u32(64) + block * u32(4))
            for token in range(u32(tokens)):
                if token < batch:
                    a, b, c, d = lds128_f32(planes, u32(at + token * stride))
                    lower, upper = y[2 * token], y[2 * token + 1]
                    lower = fma(w[5], d, fma(w[4], c, fma(w[1], b, fma(w[0], a, lower))))
                    upper = fma(w[7], d, fma(w[6], c, fma(w[3], b, fma(w[2], a, upper))))
                    y[2 * token], y[2 * token + 1] = lower, upper

    return compute


for _tokens in (1, 4):
    declare_gemv(
        __name__,
        f"gemv_fma_w16_b{_tokens}",
        16,
        128,
        _tokens,
        Product(
            stage=make_pair_stage(put, OLD_WARPS),
            begin=begin,
            compute=make_compute(_tokens),
            keep=make_keep(_tokens),
            plane_words=CHUNK + 4 * _tokens,
            sum_words=1,
            column_words=64,
            sum_count=2 * _tokens,
            warps=OLD_WARPS,
            step_inputs=64,
        ),
        lowest=70,
        highest=BELOW_AMPERE,
        registers=255,
        expects=("LDG.E.*128",),
        instructions_a_weight=INSTRUCTIONS[_tokens],
    )

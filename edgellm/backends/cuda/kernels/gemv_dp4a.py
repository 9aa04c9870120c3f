"""Decode below sm_80, codes of 4 and 8 bits: y = W x by integer dot products of four (`dp4a`).

Each 32 inputs of x (16 where groups are smaller) are two planes of int8 and a float32 scale: s = max |x| / 32512,
q = rint(x / s) = 256 hi + lo. With whole-number sums, exact in int32,

    y[r] += scale[r, g] * s * (256 sum_k code hi + sum_k code lo - zero[r, g] sum_k q)

so the rounding of x, 2^-16 of the largest of 32 at most, is the only error: 4e-10 of the squares for Gaussian x, where
128 inputs with one scale would leave 7e-10, and more than 1e-9 behind a norm whose weights differ.

A word of 4-bit codes has four inputs of row g in its even nibbles and the same four of row g + 8 in its odd ones; a
word of 8-bit codes four of one row. In shared memory the bytes of x lie as the codes do: (2t, 2t + 8, 2t + 1, 2t + 9)
of a block in a word, a lane's eight words of a tile, four blocks hi and four blocks lo, side by side. For eight weights
of a token: four products and, once for all tokens, four instructions to take nibbles apart.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.gemv_body import Product, declare_gemv
from edgellm.backends.cuda.kernels.gemv_input import make_pair_stage
from edgellm.backends.cuda.kernels.gemv_plan import BELOW_AMPERE, CHUNK, OLD_WARPS
from edgellm.backends.cuda.layout import GROUPS
from edgellm.backends.cuda.ptx import (
    bits_of_f32,
    cuda,
    device,
    dp4a_us,
    f32,
    f32_of_bits,
    f32_of_i32,
    fabs,
    fma,
    fmax,
    funnel_left,
    i32,
    lds64_f32,
    lds128,
    quad_sum,
    rcp,
    round_i32,
    shfl_xor,
    shfl_xor_u32,
    u32,
    unpack_f16x2,
)

#: Most inputs of x that share a scale.
X_GROUP = 32
#: Most instructions a weight of the hot loop, by tokens, groups of 64 and more; half are ends of the groups of x.
INSTRUCTIONS = {1: 3.0, 4: 9.0}
_TOP = f32(32512.0)  # 127 * 256: both planes fit
_LEAST = f32(2.0**-100)  # of a group's largest: below it x is 0, and its inverse stays finite


@device
def begin(lane, batch, stride):
    """Where a lane reads the bytes of its inputs; which bits of the sums of x count: all in one lane of four."""
    quad_lane = u32(lane & u32(3))
    return u32(quad_lane * u32(8)), u32(0xFFFFFFFF) if quad_lane == u32(0) else u32(0)


def make_put(group):
    """The function that leaves four inputs in shared memory as int8 planes, a scale for `group` inputs; a group of the
    chunk has two words of `sums`: its scale and, an integer, its sum."""
    lanes, halvings = group // 4, (group // 4).bit_length() - 1  # four inputs a thread

    @device
    def put(planes, sums, v, token, column, quad, quads):
        largest = fmax(fmax(fabs(v[0]), fabs(v[1])), fmax(fabs(v[2]), fabs(v[3])))
        for step in range(halvings):
            largest = fmax(largest, shfl_xor(largest, u32(1 << step)))
        scale = largest * rcp(_TOP)
        inverse = _TOP * rcp(largest) if largest > _LEAST else f32(0)
        high, low, total = u32(0), u32(0), u32(0)
        for i in range(u32(4)):  # inputs 2t, 2t + 8, 2t + 1, 2t + 9
            q = round_i32(v[i] * inverse)
            upper = i32((q + i32(128)) >> i32(8))
            high = u32(high | (u32(upper & i32(0xFF)) << (i * u32(8))))
            low = u32(low | (u32((q - (upper << i32(8))) & i32(0xFF)) << (i * u32(8))))
            total = u32(total + u32(q))
        for step in range(halvings):
            total = u32(total + shfl_xor_u32(total, u32(1 << step)))
        at = u32(column + (quad >> u32(4)) * u32(32) + (quad & u32(3)) * u32(8) + ((quad >> u32(2)) & u32(3)))
        planes[at] = high
        planes[u32(at + u32(4))] = low
        if (quad & u32(lanes - 1)) == u32(0):
            at = u32((token * u32(quads // u32(lanes)) + quad // u32(lanes)) * u32(2))
            sums[at] = scale
            sums[u32(at + u32(1))] = f32_of_bits(total)

    return put


def make_compute(bits, group, tokens):
    """One step of a warp, 16 rows x 128 inputs: y [2 tokens] has rows g and g + 8 of a token, of the lane's inputs."""
    shared_scale = min(group, X_GROUP)
    x_groups, blocks = 128 // shared_scale, shared_scale // 16
    mask, zero_bits = (1 << 2 * bits) - 1, 2 * bits

    @device
    def end_group(y, o, acc, scales, pair, scale, total):
        """Row g, y[o], from acc[0] (hi) and acc[1] (lo); row g + 8, y[o + 1], from the next two."""
        lower, upper = unpack_f16x2(scales)
        first = u32((u32(acc[0]) << u32(8)) + u32(acc[1]) - (pair & u32(mask)) * total)
        second = u32((u32(acc[2]) << u32(8)) + u32(acc[3]) - (pair >> u32(zero_bits)) * total)
        y[o] = fma(lower * scale, f32_of_i32(i32(first)), y[o])
        y[o + u32(1)] = fma(upper * scale, f32_of_i32(i32(second)), y[o + u32(1)])

    @device
    def compute(q, sz, y, planes, sums, place, step, stride, span, batch, lane):
        even, odd, b = cuda.local.array(4, u32), cuda.local.array(4, u32), cuda.local.array(8, u32)
        acc = cuda.local.array(4, i32)
        for tile in range(u32(2)):
            for j in range(u32(4)):
                if bits == 4:
                    word = funnel_left(q[4 * tile + j], q[4 * tile + j], u32(29))
                    even[j], odd[j] = word & u32(0x0F0F0F0F), u32(word >> u32(4)) & u32(0x0F0F0F0F)
                else:
                    even[j], odd[j] = q[8 * tile + 2 * j], q[8 * tile + 2 * j + 1]
            for token in range(u32(tokens)):
                if token < batch:
                    at = u32(place[0] + token * stride + step * u32(64) + tile * u32(32))
                    b[0], b[1], b[2], b[3] = lds128(planes, at)
                    b[4], b[5], b[6], b[7] = lds128(planes, u32(at + u32(4)))
                    first_group = u32(token * span * u32(group // shared_scale) + step * u32(x_groups))
                    for j in range(u32(4)):
                        if j % blocks == 0:
                            for i in range(u32(4)):
                                acc[i] = i32(0)
                        acc[0] = dp4a_us(even[j], b[j], acc[0])
                        acc[1] = dp4a_us(even[j], b[j + u32(4)], acc[1])
                        acc[2] = dp4a_us(odd[j], b[j], acc[2])
                        acc[3] = dp4a_us(odd[j], b[j + u32(4)], acc[3])
                        if j % blocks == blocks - 1:
                            block = u32(tile * u32(4) + j)
                            g = u32(block * 16 // group)
                            scale, bits_of_total = lds64_f32(sums, u32((first_group + block // blocks) * u32(2)))
                            total = bits_of_f32(bits_of_total) & place[1]
                            end_group(y, u32(token * u32(2)), acc, sz[2 * g], sz[2 * g + 1], scale, total)

    return compute


def make_keep(tokens):
    """The four lanes of a row add what each has of it."""

    @device
    def keep(partial, y, place, lane):
        at = u32(place + (lane >> u32(2)) * u32(tokens))
        for token in range(u32(tokens)):
            lower, upper = quad_sum(y[2 * token]), quad_sum(y[2 * token + 1])
            if (lane & u32(3)) == u32(0):
                partial[u32(at + token)] = lower
                partial[u32(at + token + u32(8 * tokens))] = upper

    return keep


for _tokens in (1, 4):
    for _bits in (4, 8):
        for _group in GROUPS:
            declare_gemv(
                __name__,
                f"gemv_dp4a_w{_bits}g{_group}_b{_tokens}",
                _bits,
                _group,
                _tokens,
                Product(
                    stage=make_pair_stage(make_put(min(_group, X_GROUP)), OLD_WARPS),
                    begin=begin,
                    compute=make_compute(_bits, _group, _tokens),
                    keep=make_keep(_tokens),
                    plane_words=CHUNK // 2 + 4 * _tokens,
                    sum_words=2 * CHUNK // min(_group, X_GROUP),
                    column_words=64,
                    sum_count=2 * _tokens,
                    warps=OLD_WARPS,
                ),
                lowest=70,
                highest=BELOW_AMPERE,
                registers=255,
                expects=("LDG.E.*128", "IDP.4A"),
                instructions_a_weight=INSTRUCTIONS[_tokens] * (1.6 if _group < 64 else 1.0),
            )

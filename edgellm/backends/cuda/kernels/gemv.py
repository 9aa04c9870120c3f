"""Decode, sm_80 and up: y = W x for 1 to 8 tokens on the tensor cores, as fast as the weights arrive.

The weights are operand A of `mma.m16n8k16` (bfloat16 codes, exact), the tokens are the columns of B: each token is two
of the eight columns, its first and second bfloat16, 16 bits of mantissa and all of float32's range. A warp walks down
one tile of 16 rows in steps of 128 inputs, `split` warps of the block side by side on the same tile; sums of a group
are scaled in float32, and the zero point costs one FMA a group against the sum of its inputs:

    y[r] += scale[r, g] * (sum_k (code[r, k] + base) x[k] - (zero[r, g] + base) sum_k x[k])

`gemv_body.py` has the rest. Instructions a weight of the compiled loop: `INSTRUCTIONS`, of which seven for eight
weights make operands of 4-bit codes.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.fragments import PRODUCTS
from edgellm.backends.cuda.kernels.gemv_body import Product, declare_gemv
from edgellm.backends.cuda.kernels.gemv_input import make_stage
from edgellm.backends.cuda.kernels.gemv_plan import CHUNK
from edgellm.backends.cuda.layout import GROUPS
from edgellm.backends.cuda.ptx import cuda, device, f32, fma, lds128, prmt, sub_f16x2, u32, unpack_f16x2

#: Most instructions a weight of the hot loop at four tokens, groups of 128; and how many times as many smaller groups
#: may take, for each of which sums of 16 rows are scaled, and eight tokens.
INSTRUCTIONS = {4: 2.0, 8: 3.0, 16: 6.0}
GROUP_COST = {128: 1.0, 64: 1.2, 32: 1.55, 16: 2.4}
_EIGHT_TOKENS = 1.2
#: float16 of 1024 - CODE_BASE: less 1024 + zero, which is how a zero point is planted in a float16, it is minus the
#: zero point and the base.
_PLANTED = {4: 0x63E0, 8: 0x6480}


@device
def begin(lane, batch, stride):
    """Where a lane reads its column of B for tokens 0-3 and 4-7, and its tokens of C; those of none are token 0's."""
    column, plane, quad_lane = u32(lane >> u32(3)), u32((lane >> u32(2)) & u32(1)), u32(lane & u32(3))
    low = column if column < batch else u32(0)
    high = u32(column + u32(4)) if column + u32(4) < batch else u32(0)
    at = u32(quad_lane * u32(8))
    sum_low = quad_lane if quad_lane < batch else u32(0)
    sum_high = u32(quad_lane + u32(4)) if quad_lane + u32(4) < batch else u32(0)
    b0, b1 = u32((low * u32(2) + plane) * stride + at), u32((high * u32(2) + plane) * stride + at)
    return b0, b1, sum_low, sum_high


def make_compute(bits, group, sets, step_inputs):
    """One step of a warp: 16 rows x `step_inputs` inputs, for `sets` times four tokens."""
    groups, blocks = step_inputs // group, group // 16
    product, pairs, words = PRODUCTS[bits], step_inputs // 32, step_inputs // 2
    planted = u32(_PLANTED.get(bits, 0) * 0x10001)

    @device
    def minus_zeros(pair):
        """-(zero + base) of rows g and g + 8."""
        if bits == 4:
            return unpack_f16x2(sub_f16x2(planted, prmt(pair, u32(0x64), u32(0x4140))))
        return unpack_f16x2(sub_f16x2(planted, u32(pair | u32(0x64006400))))

    @device
    def compute(q, sz, y, planes, sums, place, step, stride, span, batch, lane):
        at0, at1 = u32(place[0] + step * u32(words)), u32(place[1] + step * u32(words))
        s0, s1 = u32(place[2] * span + step * u32(groups)), u32(place[3] * span + step * u32(groups))
        b = cuda.local.array(8, u32)
        d = cuda.local.array(8, f32)
        for i in range(pairs):  # two blocks at a time
            i = u32(i)
            at = u32((i >> u32(1)) * u32(32) + (i & u32(1)) * u32(4))
            b[0], b[1], b[2], b[3] = lds128(planes, u32(at0 + at))
            if sets == 2:
                b[4], b[5], b[6], b[7] = lds128(planes, u32(at1 + at))
            for half in range(2):
                block = u32(2 * i + u32(half))
                if block % blocks == 0:
                    for j in range(4 * sets):
                        d[j] = f32(0)
                product(q, block, b, u32(2 * half), d, sets)
                if block % blocks == blocks - 1:
                    g = u32(block // blocks)
                    if bits < 16:
                        lower, upper = unpack_f16x2(sz[2 * g])
                        z0, z1 = minus_zeros(sz[2 * g + 1])
                        x0 = sums[u32(s0 + g)]
                        y[0] = fma(lower, fma(z0, x0, d[0] + d[1]), y[0])
                        y[1] = fma(upper, fma(z1, x0, d[2] + d[3]), y[1])
                        if sets == 2:
                            x1 = sums[u32(s1 + g)]
                            y[2] = fma(lower, fma(z0, x1, d[4] + d[5]), y[2])
                            y[3] = fma(upper, fma(z1, x1, d[6] + d[7]), y[3])
                    else:
                        for j in range(2 * sets):
                            y[j] += d[2 * j] + d[2 * j + 1]

    return compute


def make_keep(sets):
    """y [4 sets]: rows g and g + 8 of token t, then of token 4 + t."""
    tokens = 4 * sets

    @device
    def keep(partial, y, place, lane):
        at = u32(place + (lane >> u32(2)) * u32(tokens) + (lane & u32(3)))
        for j in range(u32(sets)):
            partial[u32(at + u32(4) * j)] = y[2 * j]
            partial[u32(at + u32(4) * j + u32(8 * tokens))] = y[2 * j + 1]

    return keep


for _tokens in (4, 8):
    for _bits in (4, 8, 16):
        _eight = _EIGHT_TOKENS if _tokens == 8 else 1.0
        for _group in GROUPS if _bits < 16 else (64,):
            # what two steps and two quads would take of more than 128 registers, on sm_80
            _step_inputs = 64 if _bits == 16 or _group == 16 or (_bits == 8 and _group < 128) else 128
            _together = 1 if _tokens == 8 and (_bits == 16 or (_bits == 8 and _group == 128)) else 2
            declare_gemv(
                __name__,
                f"gemv_w{_bits}g{_group}_b{_tokens}" if _bits < 16 else f"gemv_w16_b{_tokens}",
                _bits,
                _group,
                _tokens,
                Product(
                    stage=make_stage(_group if _bits < 16 else 0, _together),
                    begin=begin,
                    compute=make_compute(_bits, _group, _tokens // 4, _step_inputs),
                    keep=make_keep(_tokens // 4),
                    plane_words=CHUNK + 8 * _tokens,  # two columns a token of half a word an input
                    sum_words=CHUNK // _group if _bits < 16 else 1,
                    column_words=_step_inputs // 2,
                    sum_count=_tokens // 2,
                    step_inputs=_step_inputs,
                ),
                lowest=80,
                expects=("LDG.E.*128", "HMMA"),
                instructions_a_weight=INSTRUCTIONS[_bits] * GROUP_COST[_group if _bits < 16 else 128] * _eight,
            )

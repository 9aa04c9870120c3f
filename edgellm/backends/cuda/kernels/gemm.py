"""Prefill: Y = X W^T for many tokens on the tensor cores, weights dequantized in registers on their way.

A block makes 128 outputs of 64 or 128 tokens; each of its four warps has 32 of the outputs, two tiles of `layout.py`,
for all of the tokens, so no weight is dequantized twice and none passes through shared memory: a lane's 128-bit loads
are its operands. Tokens come as float16 with a power of two a row (`rows.py`), in stages of 64 inputs by `cp.async`,
three or four stages at once; rows of a stage are 128 bytes whose pieces of 16 bytes are permuted by the row, so that
`ldmatrix` meets no bank twice. Codes become float16 exactly, times their scale rounded once; sums are float32.

    Y[t, r] = factor * scale_x[t] * sum_k f16(scale[r, g] * (code[r, k] - zero[r, g])) * x16[t, k]

For each block of 16 inputs a warp issues 2 * tokens / 8 products, tokens / 16 `ldmatrix` and some 30 instructions to
dequantize 32 x 16 weights. The next tile's weights are loaded one stage ahead. Turing has no `cp.async` and products of
8 inputs: there a stage goes through registers and two products stand for one.

The end goes through shared memory, a tile of a warp at a time, so that outputs leave in rows; see `linear_flags.py` for
what can be done to them. Rows of x begin at multiples of 16 bytes: `x_stride` is a multiple of 8.

Grid: tokens / tokens a block, row tiles / 8, both rounded up.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.declare import kernel
from edgellm.backends.cuda.kernels.fragments import codes4_f16, codes8_f16
from edgellm.backends.cuda.kernels.gemv_output import finish
from edgellm.backends.cuda.kernels.linear_flags import ACT_ANY, OWN_ZEROS
from edgellm.backends.cuda.ptx import (
    cp_async16_part,
    cp_async_commit,
    cp_async_wait1,
    cp_async_wait2,
    cuda,
    device,
    f32,
    griddep_launch,
    griddep_wait,
    ldg128,
    ldg_u16,
    ldg_u32,
    ldmatrix_x4,
    mma_m16n8k16_f16,
    mul_f16x2,
    prmt,
    shfl_u32,
    u32,
)

THREADS = 128
WARPS = THREADS // 32
#: Floats of a token on its way out: 16 rows, and four more, so that lanes of a quad store to different banks.
ROOM = 20
_COPIED_ROWS = THREADS // 8  # that a pass of the block over a stage copies, 16 bytes a thread
_F16_64, _F16_1024 = 0x5400, 0x6400

PARAMETERS = (
    ("tiles", "u32*"),
    ("scales", "u32*"),
    ("zeros", "u16*"),
    ("bias", "f32*"),  # in the order of slots
    ("x", "u16*"),
    ("x_scales", "f32*"),
    ("out", "f32*"),
    ("rows", "u32"),  # of out: of a paired weight half of the layout's
    ("row_tiles", "u32"),
    ("inputs", "u32"),
    ("steps", "u32"),
    ("tokens", "u32"),
    ("x_stride", "u32"),
    ("out_stride", "u32"),
    ("group_log", "u32"),  # log2 of the group, where it is 64 or more
    ("zero", "u32"),
    ("flags", "u32"),
    ("factor", "f32"),
    ("multiplier", "f32"),
    ("softcap", "f32"),
)


def make_load(bits, parts):
    """A tile of 16 rows x 64 inputs: its words and, for each of its `parts` groups, a scale and a zero pair.

    The words of tile `which` (0 or 1) of the warp go to q[which * bits ..], the pairs to sz[which * 2 parts ..].
    """
    loads = bits // 4

    @device
    def load(q, sz, which, tiles, scales, zeros, tile, steps, k_tile, lane, group_log, zero_pair, flags):
        at = u32((tile * steps * u32(2) + k_tile) * u32(loads * 128) + lane * u32(4))
        for i in range(u32(loads)):
            o = u32(which * u32(bits) + i * u32(4))
            q[o], q[o + u32(1)], q[o + u32(2)], q[o + u32(3)] = ldg128(tiles, u32(at + i * u32(128)))
        if bits < 16:
            groups = u32(steps * u32(128)) >> group_log
            at = u32((tile * groups + (u32(k_tile * u32(64)) >> group_log)) * u32(8) + (lane >> u32(2)))
            for i in range(u32(parts)):
                o = u32(which * u32(2 * parts) + i * u32(2))
                sz[o] = ldg_u32(scales, u32(at + i * u32(8)))
                sz[o + u32(1)] = zero_pair
                if flags & u32(OWN_ZEROS):
                    if bits == 4:
                        sz[o + u32(1)] = u32(ldg_u16(zeros, u32(at + i * u32(8))))
                    else:
                        sz[o + u32(1)] = ldg_u32(zeros, u32(at + i * u32(8)))

    return load


def make_operands(bits, parts):
    """Operands A of block `j` of one of the warp's tiles: a0, a1, a2, a3, scaled."""
    if bits == 16:

        @device
        def operands(q, sz, which, j):
            o = u32(which * u32(16) + j * u32(4))
            return q[o], q[o + u32(1)], q[o + u32(2)], q[o + u32(3)]

        return operands

    @device
    def operands(q, sz, which, j):
        o = u32(which * u32(2 * parts) + ((j * u32(parts)) >> u32(2)) * u32(2))
        scale, pair = sz[o], sz[o + u32(1)]
        lower, upper = prmt(scale, scale, u32(0x1010)), prmt(scale, scale, u32(0x3232))
        if bits == 4:
            low = u32((u32(_F16_1024) + (pair & u32(0xFF))) * u32(0x10001))
            high = u32((u32(_F16_64) + ((pair >> u32(8)) << u32(4))) * u32(0x10001))
            a = codes4_f16(q[u32(which * u32(4) + j)], low, high)
        else:
            low = u32((u32(_F16_1024) + (pair & u32(0xFFFF))) * u32(0x10001))
            high = u32((u32(_F16_1024) + (pair >> u32(16))) * u32(0x10001))
            o = u32(which * u32(8) + j * u32(2))
            a = codes8_f16(q[o], q[o + u32(1)], low, high)
        return mul_f16x2(a[0], lower), mul_f16x2(a[1], upper), mul_f16x2(a[2], lower), mul_f16x2(a[3], upper)

    return operands


@device
def fetch(stage, place, x, token, limit, x_stride, first_input, inputs, row, column):
    """Begin copying a stage: 64 inputs of each token, zeros beyond the last input.

    A thread copies piece `column` of the rows `row`, row + 16 ..: tokens `token`, token + 16 .. below `limit`. What the
    rows beyond hold goes into sums that nobody reads. The loop's bound is no constant, so that it stays a loop: eight
    row addresses held through the products would not leave room for the sums of 128 tokens.
    """
    k = u32(first_input + column * u32(8))
    count = u32((inputs - k) * u32(2)) if k < inputs else u32(0)
    count = count if count < u32(16) else u32(16)
    source = u32(token * x_stride + (k if k < inputs else u32(0)))
    to = u32(place + row * u32(32) + ((column ^ (row & u32(7))) << u32(2)))
    while token < limit:
        cp_async16_part(stage, to, x, source, count)
        to = u32(to + u32(_COPIED_ROWS * 32))
        source = u32(source + x_stride * u32(_COPIED_ROWS))
        token = u32(token + u32(_COPIED_ROWS))


@device
def multiply(acc, o, a, b0, b1):
    """acc[o .. o + 3] += A B of 8 tokens."""
    acc[o], acc[o + u32(1)], acc[o + u32(2)], acc[o + u32(3)] = mma_m16n8k16_f16(
        a[0], a[1], a[2], a[3], b0, b1, acc[o], acc[o + u32(1)], acc[o + u32(2)], acc[o + u32(3)]
    )


def make_compute(bits, parts, block_tokens, multiply):
    """The products of one stage, by `multiply` for 8 tokens and a block of 16 inputs."""
    operands = make_operands(bits, parts)
    pairs, second = block_tokens // 16, block_tokens // 2

    @device
    def compute(acc, q, sz, stage, place, lane):
        matrix = u32(lane >> u32(3))
        row = u32(place + ((matrix >> u32(1)) * u32(8) + (lane & u32(7))) * u32(32))
        for j in range(u32(4)):
            a = operands(q, sz, u32(0), j)
            b = operands(q, sz, u32(1), j)
            at = u32(row + (((u32(2) * j + (matrix & u32(1))) ^ (lane & u32(7))) << u32(2)))
            for p in range(u32(pairs)):
                f0, f1, f2, f3 = ldmatrix_x4(stage, u32(at + p * u32(512)))
                o = u32(p * u32(8))
                multiply(acc, o, a, f0, f1)
                multiply(acc, u32(o + u32(4)), a, f2, f3)
                multiply(acc, u32(o + u32(second)), b, f0, f1)
                multiply(acc, u32(o + u32(second + 4)), b, f2, f3)

    return compute


def make_leave(block_tokens):
    """The end of a warp's tile, from acc[begin ..], by way of its part of shared memory.

    The barriers are the block's, though a warp's would do: below sm_90 that is a call, around which sums are spilled.
    """

    @device
    def leave(
        acc, begin, room, place, out, bias, x_scales, tile, row_tiles, first_token, tokens, rows, out_stride, lane,
        flags, factor, multiplier, softcap,
    ):  # fmt: skip
        g, t = u32(lane >> u32(2)), u32(lane & u32(3))
        for p in range(u32(block_tokens // 8)):
            at = u32(place + (p * u32(8) + t * u32(2)) * u32(ROOM) + g)
            o = u32(begin + p * u32(4))
            room[at] = acc[o]
            room[u32(at + u32(ROOM))] = acc[o + u32(1)]
            room[u32(at + u32(8))] = acc[o + u32(2)]
            room[u32(at + u32(ROOM + 8))] = acc[o + u32(3)]
        cuda.syncthreads()
        row = u32(lane & u32(15))
        local = u32(lane >> u32(4))
        while local < u32(block_tokens):
            token = u32(first_token + local)
            if token < tokens and tile < row_tiles:
                scale = x_scales[token] * factor
                at = u32(place + local * u32(ROOM) + row)
                y, up = room[at] * scale, f32(0)
                if flags & u32(ACT_ANY) and row < u32(8):
                    up = room[u32(at + u32(8))] * scale
                finish(out, y, up, bias, tile, row, token, rows, out_stride, flags, multiplier, softcap)
            local = u32(local + u32(2))
        cuda.syncthreads()

    return leave


def declare_gemm(bits, group, block_tokens):
    """Declare the kernel for weights of `bits` and groups of 16, 32 or (64) 64 and more."""
    parts = 64 // group
    stages = 3 if block_tokens == 128 else 4
    stage_words = block_tokens * 32
    shared_words = max(stages * stage_words, WARPS * block_tokens * ROOM)
    words, scale_words, zero_shift = 2 * bits, 4 * parts, 2 * bits
    sums, half_sums, room_words = block_tokens, block_tokens // 2, block_tokens * ROOM
    last_place = (stages - 1) * stage_words
    wait = cp_async_wait1 if stages == 3 else cp_async_wait2
    load, compute = make_load(bits, parts), make_compute(bits, parts, block_tokens, multiply)
    leave = make_leave(block_tokens)
    zeros_type = "u32*" if bits == 8 else "u16*"
    parameters = tuple((name, zeros_type if name == "zeros" else kind) for name, kind in PARAMETERS)
    name = f"gemm_w{bits}g{group}_t{block_tokens}" if bits < 16 else f"gemm_w16_t{block_tokens}"

    @kernel(
        name,
        parameters,
        threads=THREADS,
        lowest=80,
        registers=255,
        shared=49 * 1024,  # of which sm_90 and up keep one
        expects=("LDG.E.*128", "HMMA", "LDSM", "LDGSTS"),
    )
    def gemm(
        tiles, scales, zeros, bias, x, x_scales, out, rows, row_tiles, inputs, steps, tokens, x_stride, out_stride,
        group_log, zero, flags, factor, multiplier, softcap,
    ):  # fmt: skip
        stage = cuda.shared.array(shared_words, f32, alignment=16)
        acc = cuda.local.array(sums, f32)
        q, ahead = cuda.local.array(words, u32), cuda.local.array(words, u32)
        sz, sz_ahead = cuda.local.array(scale_words, u32), cuda.local.array(scale_words, u32)
        tid = u32(cuda.threadIdx.x)
        lane, warp = u32(tid & u32(31)), shfl_u32(u32(tid >> u32(5)), u32(0))
        first_token = u32(u32(cuda.blockIdx.x) * u32(block_tokens))
        row, column = u32(tid >> u32(3)), u32(tid & u32(7))
        token, limit = u32(first_token + row), u32(first_token + u32(block_tokens))
        limit = limit if limit < tokens else tokens
        tile = u32(u32(cuda.blockIdx.y) * u32(8) + warp * u32(2))
        last_tile = u32(row_tiles - u32(1))
        tile0 = tile if tile < last_tile else last_tile
        tile1 = u32(tile + u32(1)) if tile < last_tile else last_tile
        zero_pair = u32(zero | (zero << u32(zero_shift)))
        k_tiles = u32(steps * u32(2))
        load(ahead, sz_ahead, u32(0), tiles, scales, zeros, tile0, steps, u32(0), lane, group_log, zero_pair, flags)
        load(ahead, sz_ahead, u32(1), tiles, scales, zeros, tile1, steps, u32(0), lane, group_log, zero_pair, flags)
        griddep_wait()
        griddep_launch()
        for i in range(u32(sums)):
            acc[i] = f32(0)
        coming, place, new_place = u32(0), u32(0), u32(0)
        while coming < u32(stages - 1):
            if coming < k_tiles:
                fetch(stage, new_place, x, token, limit, x_stride, u32(coming * u32(64)), inputs, row, column)
            cp_async_commit()
            coming = u32(coming + u32(1))
            new_place = u32(new_place + u32(stage_words))
        for k_tile in range(k_tiles):
            following = u32(k_tile + u32(1))
            wait()
            cuda.syncthreads()
            if coming < k_tiles:
                fetch(stage, new_place, x, token, limit, x_stride, u32(coming * u32(64)), inputs, row, column)
            cp_async_commit()
            coming = u32(coming + u32(1))
            new_place = u32(new_place + u32(stage_words)) if new_place < u32(last_place) else u32(0)
            for i in range(u32(words)):
                q[i] = ahead[i]
            for i in range(u32(scale_words)):
                sz[i] = sz_ahead[i]
            if following < k_tiles:
                load(
                    ahead, sz_ahead, u32(0), tiles, scales, zeros, tile0, steps, following, lane, group_log, zero_pair,
                    flags,
                )  # fmt: skip
                load(
                    ahead, sz_ahead, u32(1), tiles, scales, zeros, tile1, steps, following, lane, group_log, zero_pair,
                    flags,
                )  # fmt: skip
            compute(acc, q, sz, stage, place, lane)
            place = u32(place + u32(stage_words)) if place < u32(last_place) else u32(0)
        cuda.syncthreads()
        for which in range(u32(2)):
            leave(
                acc, u32(which * u32(half_sums)), stage, u32(warp * u32(room_words)), out, bias, x_scales,
                u32(tile + which), row_tiles, first_token, tokens, rows, out_stride, lane, flags, factor, multiplier,
                softcap,
            )  # fmt: skip

    return gemm


for _tokens in (64, 128):
    for _bits in (4, 8):
        for _group in (16, 32, 64):
            declare_gemm(_bits, _group, _tokens)
    declare_gemm(16, 64, _tokens)

"""Decode, sm_80 and up: y = W x for 1 to 8 tokens on the tensor cores, as fast as the weights arrive.

The weights are operand A of `mma.m16n8k16` (bfloat16 codes, exact), the tokens are the columns of B: each token is two
of the eight columns, its first and second bfloat16, 16 bits of mantissa and all of float32's range. A warp walks down
one tile of 16 rows in steps of 128 inputs, `split` warps of the block side by side on the same tile; sums of a group
are scaled in float32, and the zero point costs one FMA a group against the sum of its inputs:

    y[r] += scale[r, g] * (sum_k (code[r, k] + base) x[k] - (zero[r, g] + base) sum_k x[k])

Work: in each pass a block takes as many tiles as it has warps / split. Partial sums of the warps on a tile meet in
shared memory and are added in their order, so results never vary. x comes in chunks of `chunk` steps
(`gemv_input.py`), once where all of it fits; the weights of two steps are in flight before x is looked at, and again
before a pass is brought to its end; while one step is computed, the next one and the one after are on their way.

Bytes in flight: two steps of 4 bits are 4 loads of 16 bytes a thread, 32 KiB a block of 512 threads; an H100 needs
some 20 KiB a multiprocessor (3.35 TB/s * 0.8 us / 132), an Orin 10. Instructions a weight: `INSTRUCTIONS`.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.declare import kernel
from edgellm.backends.cuda.kernels.fragments import CODE_BASE, PRODUCTS, STEP_WORDS
from edgellm.backends.cuda.kernels.gemv_input import CHUNK, THREADS, make_stage
from edgellm.backends.cuda.kernels.gemv_output import finish
from edgellm.backends.cuda.kernels.linear_flags import ACT_ANY, NORM, OWN_ZEROS
from edgellm.backends.cuda.layout import GROUPS
from edgellm.backends.cuda.ptx import (
    cuda,
    device,
    f32,
    f32_of_u32,
    fma,
    griddep_launch,
    griddep_wait,
    ldg128,
    ldg_u16,
    ldg_u32,
    lds128,
    rcp,
    rsqrt,
    shfl_u32,
    u32,
    unpack_f16x2,
)

WARPS = THREADS // 32
#: Most instructions a weight of the hot loop at four tokens, groups of 64 and more.
INSTRUCTIONS = {4: 2.0, 8: 3.0, 16: 8.0}

PARAMETERS = (
    ("tiles", "u32*"),
    ("scales", "u32*"),
    ("zeros", "u16*"),
    ("bias", "f32*"),  # in the order of slots
    ("x", "f32*"),
    ("norm", "f32*"),
    ("order", "u32*"),
    ("out", "f32*"),
    ("rows", "u32"),  # of out: of a paired weight half of the layout's
    ("row_tiles", "u32"),
    ("inputs", "u32"),
    ("steps", "u32"),
    ("batch", "u32"),
    ("x_stride", "u32"),
    ("out_stride", "u32"),
    ("split_log", "u32"),  # log2 of the warps on a tile
    ("chunk", "u32"),  # steps of a chunk of x, a multiple of the split
    ("zero", "u32"),
    ("flags", "u32"),
    ("factor", "f32"),
    ("multiplier", "f32"),
    ("eps", "f32"),
    ("offset", "f32"),
    ("softcap", "f32"),
)


def make_load(bits, group):
    """The loads of one step: `q` its words, `sz` a scale and a zero pair a group."""
    loads, groups = STEP_WORDS[bits] // 4, 128 // group

    @device
    def load(q, sz, tiles, scales, zeros, tile, steps, step, lane, zero_pair, flags):
        row = u32(tile * steps + step)
        at = u32(row * u32(loads * 128) + lane * u32(4))
        for i in range(loads):
            i = u32(i)
            q[4 * i], q[4 * i + 1], q[4 * i + 2], q[4 * i + 3] = ldg128(tiles, u32(at + i * u32(128)))
        if bits < 16:
            at = u32(row * u32(groups * 8) + (lane >> u32(2)))
            for i in range(groups):
                i = u32(i)
                sz[2 * i] = ldg_u32(scales, u32(at + i * u32(8)))
                sz[2 * i + 1] = zero_pair
                if flags & u32(OWN_ZEROS):
                    if bits == 4:
                        sz[2 * i + 1] = u32(ldg_u16(zeros, u32(at + i * u32(8))))
                    else:
                        sz[2 * i + 1] = ldg_u32(zeros, u32(at + i * u32(8)))

    return load


def make_compute(bits, group, sets):
    """One step of a warp: 16 rows x 128 inputs, for `sets` times four tokens."""
    blocks, zero_bits = group // 16, 2 * bits
    mask, base = (1 << 2 * bits) - 1, f32(CODE_BASE.get(bits, 0))
    product = PRODUCTS[bits]

    @device
    def compute(q, sz, y, planes, sums, b0, b1, s0, s1):
        """y [4 sets]: rows g and g + 8 of token t, then of token 4 + t; b0, b1: words of the lane in `planes`."""
        b = cuda.local.array(8, u32)
        d = cuda.local.array(8, f32)
        for i in range(4):  # two blocks at a time
            i = u32(i)
            at = u32((i >> u32(1)) * u32(32) + (i & u32(1)) * u32(4))
            b[0], b[1], b[2], b[3] = lds128(planes, u32(b0 + at))
            if sets == 2:
                b[4], b[5], b[6], b[7] = lds128(planes, u32(b1 + at))
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
                        pair = sz[2 * g + 1]
                        z0 = -(f32_of_u32(u32(pair & u32(mask))) + base)
                        z1 = -(f32_of_u32(u32(pair >> u32(zero_bits))) + base)
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


@device
def column_of(column, batch, stride, quad_lane):
    """Where a lane begins to read its column of B for tokens 0-3 and for 4-7; columns of no token read token 0's."""
    token0 = u32(column >> u32(1))
    token1 = u32(token0 + u32(4))
    token0 = token0 if token0 < batch else u32(0)
    token1 = token1 if token1 < batch else u32(0)
    plane = u32(column & u32(1))
    at = u32(quad_lane * u32(8))
    return u32((token0 * u32(2) + plane) * stride + at), u32((token1 * u32(2) + plane) * stride + at)


def make_collect(tokens):
    """The end of a pass: what the warps on each tile have summed, added in their order, becomes outputs."""
    tile_sums = 16 * tokens

    @device
    def collect(
        partial, squares, bias, out, first_tile, row_tiles, split_log, tid, batch, rows, inputs, out_stride, flags,
        factor, multiplier, eps, softcap,
    ):  # fmt: skip
        for item in range(tid, u32(WARPS * tile_sums) >> split_log, u32(THREADS)):
            item = u32(item)
            row, token, tile = item & u32(15), (item >> u32(4)) % u32(tokens), u32(item // u32(tile_sums))
            begin = u32((tile << split_log) * u32(tile_sums) + row * u32(tokens) + token)
            tile = u32(tile + first_tile)
            if token < batch and tile < row_tiles:
                y, up = f32(0), f32(0)
                for w in range(u32(1) << split_log):
                    at = u32(begin + w * u32(tile_sums))
                    y += partial[at]
                    if flags & u32(ACT_ANY) and row < u32(8):
                        up += partial[u32(at + u32(8 * tokens))]
                scale = factor
                if flags & u32(NORM):
                    square = f32(0)
                    for w in range(u32(WARPS)):
                        square += squares[u32(w * u32(8) + token)]
                    scale *= rsqrt(square * rcp(f32_of_u32(inputs)) + eps)
                finish(out, y * scale, up * scale, bias, tile, row, token, rows, out_stride, flags, multiplier, softcap)

    return collect


def declare_gemv(bits, group, tokens):
    """Declare the kernel for weights of `bits`, groups of `group` and up to `tokens` (4 or 8) tokens."""
    sets = tokens // 4
    words, groups = STEP_WORDS[bits], 128 // group
    scale_words = 2 * groups
    plane_words = CHUNK + 8 * tokens  # two columns a token, half a word an input, four words between columns
    sum_words = CHUNK // group if bits < 16 else 1
    partial_words = WARPS * 16 * tokens
    square_words = WARPS * 8
    zero_shift = 2 * bits
    load, compute = make_load(bits, group), make_compute(bits, group, sets)
    collect = make_collect(tokens)
    stage = make_stage(group if bits < 16 else 0)
    zeros_type = "u32*" if bits == 8 else "u16*"
    parameters = tuple((name, zeros_type if name == "zeros" else kind) for name, kind in PARAMETERS)
    name = f"gemv_w{bits}g{group}_b{tokens}" if bits < 16 else f"gemv_w16_b{tokens}"

    @kernel(
        name,
        parameters,
        threads=THREADS,
        lowest=80,
        registers=128,
        expects=("LDG.E.*128", "HMMA"),
        weight_bits=bits,
        instructions_a_weight=INSTRUCTIONS[bits] * (1.3 if tokens == 8 else 1.0) * (1.4 if group < 64 else 1.0),
    )
    def gemv(
        tiles,
        scales,
        zeros,
        bias,
        x,
        norm,
        order,
        out,
        rows,
        row_tiles,
        inputs,
        steps,
        batch,
        x_stride,
        out_stride,
        split_log,
        chunk,
        zero,
        flags,
        factor,
        multiplier,
        eps,
        offset,
        softcap,
    ):
        planes = cuda.shared.array(plane_words, u32, alignment=16)
        sums = cuda.shared.array(sum_words, f32, alignment=16)
        partial = cuda.shared.array(partial_words, f32, alignment=16)
        squares = cuda.shared.array(square_words, f32, alignment=16)
        qa = cuda.local.array(words, u32)
        qb = cuda.local.array(words, u32)
        za = cuda.local.array(scale_words, u32)
        zb = cuda.local.array(scale_words, u32)
        y = cuda.local.array(4, f32)
        tid = u32(cuda.threadIdx.x)
        lane, warp = u32(tid & u32(31)), shfl_u32(u32(tid >> u32(5)), u32(0))  # so that ptxas sees: one for all lanes
        column, quad_lane = u32(lane >> u32(2)), u32(lane & u32(3))
        split = u32(u32(1) << split_log)
        way = u32(warp & (split - u32(1)))
        slots = u32(u32(WARPS) >> split_log)
        round_tiles = u32(slots * u32(cuda.gridDim.x))
        zero_pair = u32(zero | (zero << u32(zero_shift)))
        stride = u32(chunk * u32(64) + u32(4))
        b0, b1 = column_of(column, batch, stride, quad_lane)
        sum0 = quad_lane if quad_lane < batch else u32(0)
        sum1 = u32(quad_lane + u32(4)) if quad_lane + u32(4) < batch else u32(0)
        first_tile = u32(u32(cuda.blockIdx.x) * slots)
        if lane < u32(8):
            squares[u32(warp * u32(8) + lane)] = f32(0)
        turn = u32(0)
        while True:
            tile = u32(first_tile + (warp >> split_log))
            count = u32((steps + split - u32(1) - way) >> split_log) if tile < row_tiles else u32(0)
            if count > u32(0):
                load(qa, za, tiles, scales, zeros, tile, steps, way, lane, zero_pair, flags)
            if count > u32(1):
                load(qb, zb, tiles, scales, zeros, tile, steps, u32(way + split), lane, zero_pair, flags)
            if turn == u32(0):
                griddep_wait()
                griddep_launch()
            else:
                cuda.syncthreads()
                collect(
                    partial, squares, bias, out, u32(first_tile - round_tiles), row_tiles, split_log, tid, batch,
                    rows, inputs, out_stride, flags, factor, multiplier, eps, softcap,
                )  # fmt: skip
                if first_tile >= row_tiles:
                    break
            for j in range(2 * sets):
                y[j] = f32(0)
            done = u32(0)
            for first in range(u32(0), steps, chunk):
                first = u32(first)
                here = u32(steps - first)
                here = here if here < chunk else chunk
                if turn == u32(0) or chunk < steps:
                    cuda.syncthreads()
                    stage(
                        planes, sums, squares, x, norm, order, inputs, batch, x_stride, flags, offset,
                        turn == u32(0), u32(first * u32(128)), u32(here * u32(32)), stride, tid,
                    )  # fmt: skip
                    cuda.syncthreads()
                limit = u32((first + here + split - u32(1) - way) >> split_log)
                limit = limit if limit < count else count
                step = u32(way + (done << split_log) - first)
                while done < limit:
                    ahead = u32(first + step + (split << u32(1)))
                    at0, at1 = u32(b0 + step * u32(64)), u32(b1 + step * u32(64))
                    s0 = u32((sum0 * here + step) * u32(groups))
                    s1 = u32((sum1 * here + step) * u32(groups))
                    if done & u32(1):
                        compute(qb, zb, y, planes, sums, at0, at1, s0, s1)
                        if ahead < steps:
                            load(qb, zb, tiles, scales, zeros, tile, steps, ahead, lane, zero_pair, flags)
                    else:
                        compute(qa, za, y, planes, sums, at0, at1, s0, s1)
                        if ahead < steps:
                            load(qa, za, tiles, scales, zeros, tile, steps, ahead, lane, zero_pair, flags)
                    done = u32(done + u32(1))
                    step = u32(step + split)
            cuda.syncthreads()
            at = u32(warp * u32(16 * tokens) + column * u32(tokens) + quad_lane)
            for j in range(sets):
                j = u32(j)
                partial[u32(at + u32(4) * j)] = y[2 * j]
                partial[u32(at + u32(4) * j + u32(8 * tokens))] = y[2 * j + 1]
            first_tile = u32(first_tile + round_tiles)
            turn = u32(1)

    return gemv


for _bits in (4, 8):
    for _group in GROUPS:
        for _tokens in (4, 8):
            declare_gemv(_bits, _group, _tokens)
for _tokens in (4, 8):
    declare_gemv(16, 128, _tokens)

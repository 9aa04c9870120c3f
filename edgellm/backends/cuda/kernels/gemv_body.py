"""What every decode kernel has in common: how blocks, warps and chunks of x share a matrix, and how sums end.

In each pass a block takes as many tiles of 16 rows as it has warps / split; `split` warps walk down one tile side by
side, in steps of 128 inputs. Their partial sums meet in shared memory and are added in their order, so results never
vary. x comes in chunks of `chunk` steps, once where all of it fits; the weights of two steps are in flight before x is
looked at, and again before a pass is brought to its end; while one step is computed, the next one and the one after are
on their way.

Bytes in flight: two steps of 4 bits are 4 loads of 16 bytes a thread, 32 KiB a block of 512 threads; an H100 needs
some 20 KiB a multiprocessor (3.35 TB/s * 0.8 us / 132), an Orin 10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgellm.backends.cuda.kernels.declare import Kernel, kernel
from edgellm.backends.cuda.kernels.fragments import STEP_WORDS
from edgellm.backends.cuda.kernels.gemv_output import finish
from edgellm.backends.cuda.kernels.gemv_plan import WARPS
from edgellm.backends.cuda.kernels.linear_flags import ACT_ANY, NORM, OWN_ZEROS
from edgellm.backends.cuda.ptx import (
    cuda,
    device,
    f32,
    f32_of_u32,
    griddep_launch,
    griddep_wait,
    ldg128,
    ldg_u16,
    ldg_u32,
    rcp,
    rsqrt,
    shfl_u32,
    u32,
)

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
    ("split_log", "u32"),  # log2 of the warps on a tile; more than there are count as all
    ("chunk", "u32"),  # steps of a chunk of x, a multiple of the split
    ("zero", "u32"),
    ("flags", "u32"),
    ("factor", "f32"),
    ("multiplier", "f32"),
    ("eps", "f32"),
    ("offset", "f32"),
    ("softcap", "f32"),
)


@dataclass(frozen=True)
class Product:
    """What is special to a way of multiplying.

    Attributes:
        stage: brings a chunk of x into shared memory.
        begin: (lane, batch, stride) to what `compute` knows the lane by.
        compute: one step of a warp, 16 rows x `step_inputs` inputs, into the lane's sums y.
        keep: the sums of a warp into its 16 x tokens places of shared memory.
        plane_words, sum_words: of shared memory, for x and for sums of its groups.
        column_words: of a step in a column of `planes`; columns are four words more than a chunk apart.
        sum_count: sums of a lane.
        warps: of a block.
        step_inputs: of a step, 128 or 64, where registers have no room for two steps of 128.
    """

    stage: Callable[..., Any]
    begin: Callable[..., Any]
    compute: Callable[..., Any]
    keep: Callable[..., Any]
    plane_words: int
    sum_words: int
    column_words: int
    sum_count: int
    warps: int = WARPS
    step_inputs: int = 128


def make_load(bits, group, step_inputs):
    """The loads of one step: `q` its words, `sz` a scale and a zero pair a group."""
    loads, groups = bits * step_inputs // 256, max(step_inputs // group, 1)

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


def make_collect(tokens, warps):
    """The end of a pass: what the warps on each tile have summed, added in their order, becomes outputs."""
    tile_sums = 16 * tokens

    @device
    def collect(
        partial, squares, bias, out, first_tile, row_tiles, split_log, tid, batch, rows, inputs, out_stride, flags,
        factor, multiplier, eps, softcap,
    ):  # fmt: skip
        for item in range(tid, u32(warps * tile_sums) >> split_log, u32(32 * warps)):
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
                    for w in range(u32(warps)):
                        square += squares[u32(w * u32(8) + token)]
                    scale *= rsqrt(square * rcp(f32_of_u32(inputs)) + eps)
                finish(out, y * scale, up * scale, bias, tile, row, token, rows, out_stride, flags, multiplier, softcap)

    return collect


def declare_gemv(module: str, name: str, bits: int, group: int, tokens: int, product: Product, **budget: Any) -> Kernel:
    """Declare a decode kernel for weights of `bits`, groups of `group` and up to `tokens` tokens; `module`: whose
    `product` it is."""
    warps = product.warps
    step_inputs = product.step_inputs
    halves = 128 // step_inputs
    words, groups, zero_shift = STEP_WORDS[bits] // halves, max(step_inputs // group, 1), 2 * bits
    most_log = warps.bit_length() - 1
    scale_words, partial_words, square_words = 2 * groups, warps * 16 * tokens, warps * 8
    plane_words, sum_words = product.plane_words, product.sum_words
    column_words, sum_count = product.column_words, product.sum_count
    stage, begin, compute, keep = product.stage, product.begin, product.compute, product.keep
    load, collect = make_load(bits, group, step_inputs), make_collect(tokens, warps)
    zeros_type = "u32*" if bits == 8 else "u16*"
    parameters = tuple((name, zeros_type if name == "zeros" else kind) for name, kind in PARAMETERS)

    @kernel(name, parameters, threads=32 * warps, weight_bits=bits, module=module, **budget)
    def gemv(
        tiles, scales, zeros, bias, x, norm, order, out, rows, row_tiles, inputs, steps,
        batch, x_stride, out_stride, split_log, chunk, zero, flags, factor, multiplier, eps, offset, softcap,
    ):  # fmt: skip
        planes = cuda.shared.array(plane_words, u32, alignment=16)
        sums = cuda.shared.array(sum_words, f32, alignment=16)
        partial = cuda.shared.array(partial_words, f32, alignment=16)
        squares = cuda.shared.array(square_words, f32, alignment=16)
        qa = cuda.local.array(words, u32)
        qb = cuda.local.array(words, u32)
        za = cuda.local.array(scale_words, u32)
        zb = cuda.local.array(scale_words, u32)
        y = cuda.local.array(sum_count, f32)
        tid = u32(cuda.threadIdx.x)
        lane, warp = u32(tid & u32(31)), shfl_u32(u32(tid >> u32(5)), u32(0))  # so that ptxas sees: one for all lanes
        split_log = split_log if split_log < u32(most_log) else u32(most_log)
        split = u32(u32(1) << split_log)
        steps, chunk = u32(steps * u32(halves)), u32(chunk * u32(halves))
        way = u32(warp & (split - u32(1)))
        slots = u32(u32(warps) >> split_log)
        round_tiles = u32(slots * u32(cuda.gridDim.x))
        zero_pair = u32(zero | (zero << u32(zero_shift)))
        stride = u32(chunk * u32(column_words) + u32(4))
        place = begin(lane, batch, stride)
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
            for j in range(sum_count):
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
                        turn == u32(0), u32(first * u32(step_inputs)), u32(here * u32(step_inputs // 4)), stride, warp,
                        lane,
                    )  # fmt: skip
                    cuda.syncthreads()
                limit = u32((first + here + split - u32(1) - way) >> split_log)
                limit = limit if limit < count else count
                step = u32(way + (done << split_log) - first)
                while done < limit:
                    ahead = u32(first + step + (split << u32(1)))
                    if done & u32(1):
                        compute(qb, zb, y, planes, sums, place, step, stride, u32(here * u32(groups)), batch, lane)
                        if ahead < steps:
                            load(qb, zb, tiles, scales, zeros, tile, steps, ahead, lane, zero_pair, flags)
                    else:
                        compute(qa, za, y, planes, sums, place, step, stride, u32(here * u32(groups)), batch, lane)
                        if ahead < steps:
                            load(qa, za, tiles, scales, zeros, tile, steps, ahead, lane, zero_pair, flags)
                    done = u32(done + u32(1))
                    step = u32(step + split)
            cuda.syncthreads()
            keep(partial, y, u32(warp * u32(16 * tokens)), lane)
            first_tile = u32(first_tile + round_tiles)
            turn = u32(1)

    return gemv

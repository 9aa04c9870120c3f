"""Linears of 2-, 4- and 8-bit weights: integer dot products in groups (decode and prefill).

    out[t, r] = bias[r] + factor * sum over groups g of
                xs[t, g] * scale[r, g] * (sum_i code[r, i] * q[t, i] - zero[r, g] * sum_i q[t, i])

The inner sums are exact. Layouts are in `layout.py` (weights) and `linear_tiles.py` (activations). A piece of work is a
block of LANES rows; for every tile of columns a thread goes through the block once, with the tile's accumulators in
registers and the weights unpacked once for all its columns. Up to `WIDEST` columns that is decode: weights are read
once, front to back, with the sums of a band's blocks kept from stretch to stretch. Beyond, a block's weights stay in
the processor's cache from tile to tile.

Bytes moved: the packed weight, and for every block the tiles' quads out of cache.
"""

from __future__ import annotations

from collections.abc import Callable

from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.layout import ALIGNMENT, BAND
from edgellm.backends.cpu.linear_columns import count_stretches, full_columns, piece_begin, round_line
from edgellm.backends.cpu.linear_end import finish_tile
from edgellm.backends.cpu.linear_tiles import WIDEST
from edgellm.simd import (
    F32_LANES,
    bitcast_u8,
    broadcast_f32,
    broadcast_i8x4,
    convert_f32,
    dot_u7i8,
    dot_u8i8,
    fma,
    high_nibbles,
    indices,
    load_f16,
    load_f32,
    load_i32,
    load_u8,
    load_u8_to_i32,
    low_nibbles,
    prefetch_l2,
    splat_i32,
    store,
    tile,
    zero_f32,
    zero_i32,
)

_LANES = F32_LANES
_VECTOR = 4 * F32_LANES


@kernel
def _crumbs(weights, at, half):
    """Eight inputs of a block's rows, the first or the second ones of a line: their first and their second four."""
    line, mask = load_i32(weights, at) >> 4 * half, splat_i32(0x03030303)
    return bitcast_u8(line & mask), bitcast_u8(line >> 2 & mask)


@kernel
def _nibbles(weights, at, half):
    line = load_u8(weights, at)
    return low_nibbles(line), high_nibbles(line)


@kernel
def _bytes(weights, at, half):
    return load_u8(weights, at), load_u8(weights, at + _VECTOR)


@kernel
def _zeros_u8(weights, at):
    return convert_f32(load_u8_to_i32(weights, at))


def _make_sums(width: int, bits: int) -> Callable[..., None]:
    """The kernel that puts a piece's sums for one tile of `width` columns into `stage`, or, behind the first stretch,
    adds them to what is there; it asks for what is read next, `ahead` bytes on, line by line (`linear_next.py`)."""
    eight_inputs, dot = {2: (_crumbs, dot_u7i8), 4: (_nibbles, dot_u7i8), 8: (_bytes, dot_u8i8)}[bits]
    zeros_of = _zeros_u8 if bits == 4 else load_f16
    eights = 2 if bits == 2 else 1  # of a step
    step = _VECTOR * bits // 4 * eights  # in bytes

    @kernel(shared=True)
    def sums_of(stage, at, g, weights, scales, zero_step, zeros, quads, column, xs, all_groups, groups, group, ahead):
        """Groups g .. g + groups - 1 of `all_groups`; `zeros` is where the whole weight's zero points are."""
        line = scales + round_line(groups * (2 * _LANES + zero_step))
        for head in range(scales, line, ALIGNMENT):
            prefetch_l2(weights, head + ahead)
        if zero_step > 0:
            zeros = scales + groups * 2 * _LANES
        quad = (column * all_groups + g * width) * (group // 4)
        scale_at = 2 * (column * all_groups + g * width)
        sums = tile(zero_f32(), width)
        for _ in range(groups):
            first, second = tile(zero_i32(), width), tile(zero_i32(), width)
            for _ in range(group // (8 * eights)):
                for half in range(eights):
                    left, right = eight_inputs(weights, line, half)
                    if width > 2:
                        first = dot(first, left, broadcast_i8x4(quads, indices(quad, 1, width)))
                        first = dot(first, right, broadcast_i8x4(quads, indices(quad + width, 1, width)))
                    else:  # twice the chains, or the processor waits for each dot product
                        first = dot(first, left, broadcast_i8x4(quads, indices(quad, 1, width)))
                        second = dot(second, right, broadcast_i8x4(quads, indices(quad + width, 1, width)))
                    quad += 2 * width
                for more in range(0, step, ALIGNMENT):
                    prefetch_l2(weights, line + ahead + more)
                line += step
            if width <= 2:
                first += second
            zero = zeros_of(weights, zeros)
            exact = fma(-zero, broadcast_f32(xs, indices(scale_at + width, 1, width)), convert_f32(first))
            sums = fma(exact * broadcast_f32(xs, indices(scale_at, 1, width)), load_f16(weights, scales), sums)
            scales += 2 * _LANES
            zeros += zero_step
            scale_at += 2 * width
        if g > 0:
            sums += load_f32(stage, indices(at, _LANES, width))
        store(stage, indices(at, _LANES, width), sums)

    return sums_of


def _make_sweep(width: int, bits: int) -> Callable[..., None]:
    """The kernel that takes a range of blocks through a range of tiles, all `width` columns wide."""
    sums_of = _make_sums(width, bits)
    zero_bytes = _LANES if bits == 4 else 2 * _LANES

    @kernel(shared=True)
    def sweep(
        out, quads, xs, stage, weights, op, columns, planes, first_column, last_column, first, last, following, stage_at
    ):  # fmt: skip
        group, stretch = op["group"], op["stretch"]
        stretches, groups = count_stretches(op)
        zero_step = zero_bytes if op["own_zeros"] else 0
        if last_column - first_column > width:
            # Every tile goes through a block, whose weights are in a cache after the first.
            for block in range(first, last):
                row, coming = block * _LANES, min(block + 1, last - 1)
                for column in range(first_column, last_column, width):
                    for number in range(stretches):
                        g, piece = number * stretch, piece_begin(op, stretches, number, block)
                        ahead = piece_begin(op, stretches, number, coming) - piece
                        sums_of(
                            stage, stage_at, g, weights, piece, zero_step, op["weight"], quads, column, xs, groups,
                            min(stretch, groups - g), group, ahead
                        )  # fmt: skip
                    tokens = min(width, columns - column) // planes
                    out_at = op["out"] + column // planes * op["out_stride"] + row
                    finish_tile(out, stage, weights, op, out_at, stage_at, tokens, planes, row)
            return
        piece = piece_begin(op, stretches, 0, first)
        while first < last:  # One tile goes through a band stretch by stretch, in the order of memory.
            top = min(first // BAND * BAND + BAND, last)
            for number in range(stretches):
                g = number * stretch
                for block in range(first, top):
                    if block + 1 < top:
                        coming = piece_begin(op, stretches, number, block + 1)
                    elif number + 1 < stretches:
                        coming = piece_begin(op, stretches, number + 1, first)
                    else:
                        coming = piece_begin(op, stretches, 0, top) if top < last else following
                    at = stage_at + (block - first) * width * _LANES
                    sums_of(
                        stage, at, g, weights, piece, zero_step, op["weight"], quads, first_column, xs, groups,
                        min(stretch, groups - g), group, coming - piece
                    )  # fmt: skip
                    piece = coming
            for block in range(first, top):
                at = stage_at + (block - first) * width * _LANES
                tokens = min(width, columns - first_column) // planes
                out_at = op["out"] + first_column // planes * op["out_stride"] + block * _LANES
                finish_tile(out, stage, weights, op, out_at, at, tokens, planes, block * _LANES)
            first = top

    return sweep


def _make_op(bits: int) -> Callable[..., None]:
    """The kernel that takes a range of blocks through all tiles."""
    sweep_1, sweep_2, sweep_4 = (_make_sweep(width, bits) for width in (1, 2, 4))
    widest = _make_sweep(WIDEST, bits) if WIDEST > 4 else sweep_4

    @kernel(shared=True)
    def op_linear(out, quads, xs, stage, weights, op, tokens, planes, first, last, following, at):
        columns = tokens * planes
        full = full_columns(columns)
        if full > 0:
            widest(out, quads, xs, stage, weights, op, columns, planes, 0, full, first, last, following, at)
        rest = columns - full
        if rest == 1:
            sweep_1(out, quads, xs, stage, weights, op, columns, planes, full, columns, first, last, following, at)
        elif rest == 2:
            sweep_2(out, quads, xs, stage, weights, op, columns, planes, full, columns, first, last, following, at)
        elif rest > 2:
            sweep_4(out, quads, xs, stage, weights, op, columns, planes, full, columns, first, last, following, at)

    return op_linear


def make_block(bits: int) -> Callable[..., None]:
    """The kernel that takes one block of a weight without zero points of its own through the columns of one token, and
    asks for the block `following` meanwhile, which nobody else does where that is another one than the next."""
    sums_1, sums_2 = (_make_sums(width, bits) for width in (1, 2))

    @kernel(shared=True)
    def op_block(out, quads, xs, stage, weights, op, planes, block, following, at):
        group, stretch, zeros = op["group"], op["stretch"], op["weight"]
        stretches, groups = count_stretches(op)
        for number in range(stretches):
            g, piece = number * stretch, piece_begin(op, stretches, number, block)
            count, ahead = min(stretch, groups - g), piece_begin(op, stretches, number, following) - piece
            if planes == 1:
                sums_1(stage, at, g, weights, piece, 0, zeros, quads, 0, xs, groups, count, group, ahead)
            else:
                sums_2(stage, at, g, weights, piece, 0, zeros, quads, 0, xs, groups, count, group, ahead)
        finish_tile(out, stage, weights, op, op["out"] + block * _LANES, at, 1, planes, block * _LANES)

    return op_block


#: op_linear(out, quads, xs, stage, weights, op, tokens, planes, first, last, following, at): blocks first .. last - 1,
#: by a thread whose part of `stage` begins at `at` and that reads what is at `following` in weights next. `op` is a
#: record with the fields of `LINEAR_FIELDS`; out float32; quads int32 and xs float32 as `op_quantize` left them; stage
#: float32; weights uint8.
op_linear_int2 = _make_op(2)
op_linear_int4 = _make_op(4)
op_linear_int8 = _make_op(8)

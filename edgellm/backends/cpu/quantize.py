"""Activations for the integer dot products: int8 in the groups of the weight that they meet.

One plane:  x ~ scale * q,                    scale = max |x| / 127 of the group,      q = round(x / scale)
Two planes: x ~ scale * (128 * high + low),   scale = max |x| / (127 * 128),           16 bits in effect

The planes are columns of their own with scales 128 * scale and scale, so the kernels know nothing of them but to add
their results. The sum of each group's q goes along: it is what a zero point multiplies.

A piece of work is a group of a tile's tokens: their quads share lines, which one thread then writes while they are in
its first-level cache. A NaN or an infinity makes the scale NaN, so
that it reaches the outputs. `op_quantize` reads 4 bytes an input and writes 1 (a plane), `op_arrange` writes 4.
"""

from __future__ import annotations

import numpy as np

from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.linear_columns import tile_width
from edgellm.backends.cpu.linear_tiles import STAGE, WIDEST
from edgellm.backends.cpu.work import share
from edgellm.simd import (
    F32_LANES,
    fma,
    load_f32,
    maximum,
    reduce_add,
    reduce_max,
    round_i32,
    splat_f32,
    splat_i32,
    store_quads,
    zero_f32,
    zero_i32,
)

#: Where in `stage` the inverses of a tile's scales stand, behind the floats of a group.
_INVERSES_AT = 128
_TOP = np.float32(127.0)
_TOP_TWO = np.float32(127.0 * 128.0)
#: Below it a group counts as zeros: 127 / max would leave float32.
_SMALLEST = np.float32(1e-30)


@kernel(shared=True)
def op_quantize(quads, xs, act, stage, permutations, op, tokens, planes, ith, nth):
    """Quantize `tokens` rows into `planes` planes.

    Args:
        quads, xs: int32, float32; written, see `linear_tiles.py`.
        act: float32; where the rows lie, `op` says.
        stage: float32 [nth * STAGE], scratch.
        permutations: int32; where there is one, column j reads input permutations[op.permutation + j].
        op: a record with `LINEAR_FIELDS`: source, source_stride, permutation, inputs, group.
    """
    inputs, group, permutation = op["inputs"], op["group"], op["permutation"]
    groups = (inputs + group - 1) // group
    columns = tokens * planes
    tile_tokens = WIDEST // planes
    first, last = share(ith, nth, (tokens + tile_tokens - 1) // tile_tokens * groups)
    for piece in range(first, last):
        begin, g = piece // groups * tile_tokens, piece % groups
        tile = begin * planes
        width = tile_width(columns - tile)
        quad, scale_at = (tile * groups + g * width) * (group // 4), 2 * (tile * groups + g * width)
        count = min(group, inputs - g * group)
        gathered, own = permutation >= 0 or count < group, ith * STAGE
        if not gathered:
            # All maxima before the first rounding: one token's would wait for its own, in a chain of 40 cycles.
            for column in range(min(tile_tokens, tokens - begin)):
                at = op["source"] + (begin + column) * op["source_stride"] + g * group
                stage[own + _INVERSES_AT + column] = _measure(xs, act, at, group, scale_at + column * planes, planes)
        for column in range(min(tile_tokens, tokens - begin)):
            row = op["source"] + (begin + column) * op["source_stride"]
            source, at = act, row + g * group
            if gathered:
                _gather(stage, own, act, permutations, row, g * group, permutation, count, group)
                source, at = stage, own
                stage[own + _INVERSES_AT + column] = _measure(xs, stage, own, group, scale_at, planes)
            inverse = stage[own + _INVERSES_AT + column]
            if planes == 1:
                _round(quads, xs, source, at, quad, scale_at, width, group, inverse)
            else:
                _round_two(quads, xs, source, at, quad, scale_at, width, group, inverse)
            quad += planes
            scale_at += planes


@kernel
def _gather(out, out_at, act, permutations, row, first, permutation, count, group):
    """A group of a row in the columns' order, zeros behind the last input."""
    for i in range(count):
        position = first + i if permutation < 0 else permutations[permutation + first + i]
        out[out_at + i] = act[row + position]
    for i in range(count, group):
        out[out_at + i] = np.float32(0.0)


@kernel
def _measure(xs, source, at, group, scale_at, planes):
    """The scales of a group into `xs`; 1 / scale of the finer plane, 0 for a group of zeros."""
    most, poison = zero_f32(), zero_f32()
    for i in range(at, at + group, F32_LANES):
        x = load_f32(source, i)
        most = maximum(abs(x), most)
        poison = fma(x, zero_f32(), poison)
    largest, nan = reduce_max(most), reduce_add(poison)
    top = _TOP if planes == 1 else _TOP_TWO
    step, inverse = np.float32(0.0), np.float32(0.0)
    if largest > _SMALLEST:
        step, inverse = largest / top, top / largest
    if planes == 2:
        xs[scale_at + 1] = step + nan
        step *= np.float32(128.0)
    xs[scale_at] = step + nan
    return inverse


@kernel
def _round(quads, xs, source, at, quad, scale_at, width, group, inverse):
    """A group in one plane."""
    by, total = splat_f32(inverse), zero_i32()
    for i in range(0, group, F32_LANES):
        q = round_i32(load_f32(source, at + i) * by)
        total += q
        store_quads(quads, quad + i // 4 * width, width, q)
    xs[scale_at + width] = np.float32(reduce_add(total))


@kernel
def _round_two(quads, xs, source, at, quad, scale_at, width, group, inverse):
    """A group in two planes."""
    by, total, total_low = splat_f32(inverse), zero_i32(), zero_i32()
    for i in range(0, group, F32_LANES):
        q = round_i32(load_f32(source, at + i) * by)
        high = (q + splat_i32(64)) >> 7
        low = q - (high << 7)
        total += high
        total_low += low
        store_quads(quads, quad + i // 4 * width, width, high)
        store_quads(quads, quad + i // 4 * width + 1, width, low)
    xs[scale_at + width] = np.float32(reduce_add(total))
    xs[scale_at + width + 1] = np.float32(reduce_add(total_low))


@kernel(shared=True)
def op_arrange(xs, act, permutations, op, tokens, ith, nth):
    """Activations into tiles as they are, for F16 weights. Arguments as in `op_quantize`; each token is done whole."""
    inputs, permutation = op["inputs"], op["permutation"]
    first, last = share(ith, nth, tokens)
    for token in range(first, last):
        tile = token // WIDEST * WIDEST
        width = tile_width(tokens - tile)
        row, out = op["source"] + token * op["source_stride"], tile * inputs + token - tile
        for i in range(inputs):
            position = i if permutation < 0 else permutations[permutation + i]
            xs[out + i * width] = act[row + position]

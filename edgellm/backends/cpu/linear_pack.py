"""Dense weights into packed blocks: to float16, or rounded to 8 bits in groups.

    codes   q = round(w / scale) + 128,  scale = float16(max |w| / 127) of a group

Kernels, for NumPy goes over such a weight six times: an lm_head of 500 MB is most of what loading has to compute.
"""

from __future__ import annotations

import numpy as np

from edgellm.backends.cpu.work import bare_kernel
from edgellm.simd import (
    F32_LANES,
    convert_i32,
    load_f16,
    load_f32,
    load_n_f32,
    maximum,
    minimum,
    reduce_max,
    select,
    splat_f32,
    splat_i32,
    store,
    store_f16,
    store_i32_to_i8,
    zero_f32,
)

_LANES = F32_LANES
#: Floats of scratch that both kernels need.
PACK_STAGE = F32_LANES * F32_LANES + F32_LANES
#: 128 in each byte: turns a signed byte into the code 128 above it.
_MIDDLES = np.int32(-2139062144)


@bare_kernel
def _loaded(weight, at, count):
    """A vector's worth of weights, zeros behind `count` of them."""
    if count >= _LANES:
        return load_f32(weight, at)
    return load_n_f32(weight, at, count)


@bare_kernel
def pack_float16(out, weight, stage, rows, inputs, lines, block_bytes, inverse, first, last):
    """Blocks first..last-1 of F16 lines from weight * inverse.

    Args:
        out: uint8, the packed weight.
        weight: float32 [rows * inputs].
        stage: float32 [PACK_STAGE].
        lines: where the first block's lines begin.
    """
    for block in range(first, last):
        row = block * _LANES
        here = min(_LANES, rows - row)
        line = lines + block * block_bytes
        for i in range(0, inputs, _LANES):
            for lane in range(here):  # a square of the weight, so that every cache line of it is read once
                store(stage, lane * _LANES, _loaded(weight, (row + lane) * inputs + i, inputs - i))
            column = _LANES * _LANES
            for j in range(min(_LANES, inputs - i)):
                for lane in range(_LANES):
                    stage[column + lane] = stage[lane * _LANES + j] if lane < here else np.float32(0.0)
                store_f16(out, line + (i + j) * 2 * _LANES, load_f32(stage, column) * splat_f32(inverse))


@bare_kernel
def pack_rounded(
    out, weight, stage, rows, inputs, first_input, last_input, group, lines, piece_bytes, begin, factor, first, last
):
    """Pieces of INT8 groups with the zero point 128: blocks first..last-1, inputs first_input..last_input-1.

    Args:
        out, weight, stage: as in `pack_float16`.
        lines: where a piece's lines begin in it.
        begin: where the first of the pieces begins.
    """
    words, stage_bytes, stage_words = out.view(np.int32), stage.view(np.int8), stage.view(np.int32)
    for block in range(first, last):
        row, scales = block * _LANES, begin + (block - first) * piece_bytes
        here = min(_LANES, rows - row)
        line = scales + lines
        for start in range(first_input, last_input, group):
            count = min(group, last_input - start)
            for lane in range(_LANES):
                stage[lane] = np.float32(0.0)
                if lane < here:
                    stage[lane] = _largest(weight, (row + lane) * inputs + start, count)
            store_f16(out, scales, load_f32(stage, 0) * splat_f32(np.float32(1.0) / (np.float32(127.0) * factor)))
            # The codes must fit the scale as it was rounded; one that became zero leaves codes of no weight.
            step = load_f16(out, scales) * splat_f32(factor)
            store(stage, 0, select(step > zero_f32(), splat_f32(1.0) / step, zero_f32()))
            for lane in range(here):
                at, quads = (row + lane) * inputs + start, line // 4 + lane
                _round_group(words, weight, stage_bytes, stage_words, at, count, stage[lane], quads)
            scales += 2 * _LANES
            line += group * _LANES


@bare_kernel
def _largest(weight, at, count):
    most = zero_f32()
    for i in range(0, count, _LANES):
        most = maximum(abs(_loaded(weight, at + i, count - i)), most)
    return reduce_max(most)


@bare_kernel
def _round_group(words, weight, stage_bytes, stage_words, at, count, inverse, quads):
    """A row's codes in a group, to every LANES-th word from `quads` on."""
    for i in range(0, count, _LANES):
        q = convert_i32(_loaded(weight, at + i, count - i) * splat_f32(inverse))
        q = minimum(maximum(q, splat_i32(-127)), splat_i32(127))
        store_i32_to_i8(stage_bytes, 4 * _LANES, q)
        for j in range(_LANES // 4):
            words[quads + (i // 4 + j) * _LANES] = stage_words[_LANES + j] ^ _MIDDLES

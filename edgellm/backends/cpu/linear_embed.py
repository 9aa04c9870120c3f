"""Rows of a packed weight as activations: the embedding, which may be a tied lm_head in the very same bytes.

    out[t, i] = factor * weight[token_ids[t], i] * multiplier         (added to what is there, where op.adds says so)

A row is one lane of its block, so every line gives it 16, 8, 4 or 1 inputs of 64 bytes: 4 KB to 32 KB read for 1,000
inputs, and nothing stored twice. A piece of work is a token.
"""

from __future__ import annotations

import numpy as np

from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.linear_columns import count_stretches, piece_begin, round_line
from edgellm.backends.cpu.work import share
from edgellm.simd import F32_LANES, convert_f32, first_n, load_f16, load_u8_to_i32, reduce_add, select, zero_f32

_LANES = F32_LANES
_LINE = 4 * F32_LANES


@kernel
def _lane(vector, lane):
    return reduce_add(select(first_n(lane + 1) & ~first_n(lane), vector, zero_f32()))


@kernel(shared=True)
def op_embed(out, weights, op, token_ids, kind, multiplier, tokens, ith, nth):
    """Rows of a weight, one a token.

    Args:
        out: float32; token t's row begins at op.out + t * op.out_stride.
        weights: uint8.
        op: a record with `LINEAR_FIELDS`: weight, rows, inputs, group, own_zeros, stretch, head_bytes,
            block_bytes, first_bytes, factor, out, out_stride, adds.
        token_ids: int32 [tokens], below op.rows.
        kind: a `LinearKind` as an integer.
    """
    first, last = share(ith, nth, tokens)
    factor = np.float32(op["factor"] * multiplier)
    for token in range(first, last):
        row, at = token_ids[token], op["out"] + token * op["out_stride"]
        if kind == 0:
            _dense_row(out, at, weights, op, row, factor)
        else:
            _coded_row(out, at, weights, op, row, factor, 16 >> kind)


@kernel
def _dense_row(out, at, weights, op, row, factor):
    inputs, line = op["inputs"], op["weight"] + row // _LANES * op["block_bytes"]
    for i in range(inputs):
        out[at + i] = _lane(load_f16(weights, line + i * 2 * _LANES), row % _LANES) * factor


@kernel
def _coded_row(out, at, weights, op, row, factor, bits):
    inputs, group, stretch = op["inputs"], op["group"], op["stretch"]
    (stretches, groups), block, lane = count_stretches(op), row // _LANES, row % _LANES
    zero_step = (_LANES if bits == 4 else 2 * _LANES) if op["own_zeros"] else 0
    for number in range(stretches):
        first = number * stretch
        count, scales = min(stretch, groups - first), piece_begin(op, stretches, number, block)
        head = round_line(count * (2 * _LANES + zero_step))
        zeros = scales + count * 2 * _LANES if zero_step > 0 else op["weight"]
        for g in range(count):
            scale = _lane(load_f16(weights, scales + g * 2 * _LANES), lane) * factor
            zero_at = zeros + g * zero_step
            if bits == 4:
                zero = _lane(convert_f32(load_u8_to_i32(weights, zero_at)), lane)
            else:
                zero = _lane(load_f16(weights, zero_at), lane)
            start = (first + g) * group
            for i in range(min(group, inputs - start)):
                quad = scales + head + (g * group + i) * bits // 32 * _LINE + 4 * lane
                code = weights[quad + i % 4] >> bits * (i % (32 // bits) // 4) & (1 << bits) - 1
                value = (np.float32(code) - zero) * scale
                out[at + start + i] = out[at + start + i] + value if op["adds"] != 0 else value

"""Linears of float16 weights: fused multiply-adds in float32 (decode and prefill).

    out[t, r] = factor * sum_i weight[r, i] * x[t, i] + bias[r]

Blocks of LANES rows against tiles of columns, as in `linear_int.py`; a column is a token, and a tile's activations are
floats (`op_arrange`). Inputs are summed in their order, in one accumulator a row and column; up to two columns in two,
of the even and the odd inputs. Bytes moved: the packed weight, 2 a number.
"""

from __future__ import annotations

from collections.abc import Callable

from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.linear_columns import full_columns
from edgellm.backends.cpu.linear_end import finish_tile
from edgellm.backends.cpu.linear_tiles import WIDEST
from edgellm.simd import (
    F32_LANES,
    broadcast_f32,
    fma,
    indices,
    load_f16,
    store,
    tile,
    zero_f32,
)

_LANES = F32_LANES
_LINE = 2 * F32_LANES


def _make_sums(width: int) -> Callable[..., None]:
    """The kernel that leaves a block's sums for one tile of `width` columns in `stage`."""

    @kernel
    def sums_of(stage, at, weights, line, xs, x, inputs):
        even, odd = tile(zero_f32(), width), tile(zero_f32(), width)
        for _ in range(inputs // 2):
            even = fma(load_f16(weights, line), broadcast_f32(xs, indices(x, 1, width)), even)
            other = load_f16(weights, line + _LINE)
            if width > 2:
                even = fma(other, broadcast_f32(xs, indices(x + width, 1, width)), even)
            else:
                odd = fma(other, broadcast_f32(xs, indices(x + width, 1, width)), odd)
            line += 2 * _LINE
            x += 2 * width
        if inputs % 2 == 1:
            even = fma(load_f16(weights, line), broadcast_f32(xs, indices(x, 1, width)), even)
        store(stage, indices(at, _LANES, width), even + odd)

    return sums_of


def _make_sweep(width: int) -> Callable[..., None]:
    """The kernel that takes a range of blocks through a range of tiles, all `width` columns wide."""
    sums_of = _make_sums(width)

    @kernel
    def sweep(out, xs, stage, weights, op, tokens, first_token, last_token, first, last, stage_at):
        inputs = op["inputs"]
        for block in range(first, last):
            row = block * _LANES
            for token in range(first_token, last_token, width):
                sums_of(stage, stage_at, weights, op["weight"] + block * op["block_bytes"], xs, token * inputs, inputs)
                out_at = op["out"] + token * op["out_stride"] + row
                finish_tile(out, stage, weights, op, out_at, stage_at, min(width, tokens - token), 1, row)

    return sweep


_sweep_1, _sweep_2, _sweep_4 = (_make_sweep(width) for width in (1, 2, 4))
_widest = _make_sweep(WIDEST) if WIDEST > 4 else _sweep_4


@kernel(shared=True)
def op_linear_f16(out, xs, stage, weights, op, tokens, first, last, at):
    """A linear of float16 weights; arguments as in `linear_int.py`, xs as `op_arrange` left them."""
    full = full_columns(tokens)
    if full > 0:
        _widest(out, xs, stage, weights, op, tokens, 0, full, first, last, at)
    rest = tokens - full
    if rest == 1:
        _sweep_1(out, xs, stage, weights, op, tokens, full, tokens, first, last, at)
    elif rest == 2:
        _sweep_2(out, xs, stage, weights, op, tokens, full, tokens, first, last, at)
    elif rest > 2:
        _sweep_4(out, xs, stage, weights, op, tokens, full, tokens, first, last, at)

"""How a linear's sums become outputs: factor, bias, residual."""

from __future__ import annotations

from edgellm.backends.cpu.jit import kernel
from edgellm.simd import F32_LANES, fma, load_f32, load_n_f32, splat_f32, store, store_n


@kernel
def finish_tile(out, stage, weights, op, out_at, sums, tokens, planes, row):
    """y = factor * sums + bias for the rows of a block; out = y, or out + multiplier * y.

    Args:
        out: float32; the block's rows of the tile's first token begin at `out_at`.
        stage: float32; the sums of column c of the tile, LANES of them, begin at sums + c * LANES.
        op: a record with `LINEAR_FIELDS`.
        row: first row of the block.
    """
    factor, multiplier = splat_f32(op["factor"]), splat_f32(op["multiplier"])
    rows, bias, adds, stride = op["rows"] - row, op["bias"], op["adds"], op["out_stride"]
    for token in range(tokens):
        y = load_f32(stage, sums + token * planes * F32_LANES)
        if planes == 2:
            y += load_f32(stage, sums + (token * 2 + 1) * F32_LANES)
        y *= factor
        if bias >= 0:
            y += load_f32(weights, bias + 4 * row)
        at = out_at + token * stride
        if rows >= F32_LANES:
            if adds != 0:
                y = fma(y, multiplier, load_f32(out, at))
            store(out, at, y)
        else:
            if adds != 0:
                y = fma(y, multiplier, load_n_f32(out, at, rows))
            store_n(out, at, y, rows)

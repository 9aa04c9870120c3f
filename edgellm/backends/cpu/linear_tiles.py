"""Activations in tiles of columns, the form in which every linear reads them.

A column is what one accumulator meets: a token, or one of a token's two planes (`quantize.py`); token t has columns
t * planes ... A tile is `WIDEST` columns, the last one the power of two that holds the rest (its spare columns are
computed and dropped). In a tile the four inputs of a quad stand together, and a quad's columns side by side:

    quads   int32   [tile][inputs / 4][width]             four int8 each, little-endian
    xs      float32 [tile][groups][2, width]              scales, sums of the int8 numbers of a group
    xs      float32 [tile][inputs][width]                 for F16 weights: the activations themselves

so that a kernel reads its broadcasts one after the other. A tile begins where its columns' share of the array begins.
"""

from __future__ import annotations

import numpy as np

from edgellm.backends.cpu.layout import BAND, LinearKind, LinearLayout, round_up
from edgellm.simd.target import F32_LANES, TARGET

#: Fields that a linear's record has in the op table. Offsets count elements, of `weights` bytes.
LINEAR_FIELDS = [
    ("source", np.int64),  # activations of token t: act[source + t * source_stride ...]
    ("source_stride", np.int64),
    ("out", np.int64),  # outputs of token t: out[out + t * out_stride ...]
    ("out_stride", np.int64),
    ("weight", np.int64),  # in weights
    ("bias", np.int64),  # in weights, float32 for whole blocks of rows; -1 for none
    ("permutation", np.int64),  # in permutations; -1 for none
    ("rows", np.int64),  # these and the next seven: of the weight's layout
    ("inputs", np.int64),
    ("group", np.int64),
    ("own_zeros", np.int64),
    ("stretch", np.int64),
    ("head_bytes", np.int64),
    ("block_bytes", np.int64),
    ("first_bytes", np.int64),  # of a block's first piece
    ("adds", np.int64),  # whether out += multiplier * y, else out = y
    ("factor", np.float32),  # that `pack_linear` gave
    ("multiplier", np.float32),
]
#: Columns of a tile. In 32 vector registers 8 integer and 8 float accumulators stay put, in 16 registers 4 and 4.
WIDEST = 4 if TARGET.arch == "x86" and TARGET.isa != "avx512vnni" else 8
#: Floats a thread has to itself in `stage`.
STAGE = max(256, BAND * WIDEST * F32_LANES)


def layout_fields(layout: LinearLayout) -> dict[str, int]:
    """What a linear's record says of its weight's layout."""
    return {
        "rows": layout.rows,
        "inputs": layout.inputs,
        "group": layout.group,
        "own_zeros": int(layout.own_zeros),
        "stretch": layout.stretch,
        "head_bytes": layout.head_bytes,
        "block_bytes": layout.block_bytes,
        "first_bytes": layout.first_bytes,
    }


def padded_columns(columns: int) -> int:
    """Columns with the last tile's spare ones."""
    rest = columns % WIDEST
    return columns - rest + (1 << (rest - 1).bit_length() if rest else 0)


def scratch_sizes(layout: LinearLayout, tokens: int, planes: int) -> tuple[int, int]:
    """Elements of `quads` and of `xs` that a linear of that layout needs for so many tokens."""
    if layout.kind == LinearKind.F16:
        return 0, padded_columns(tokens) * layout.inputs
    columns = padded_columns(tokens * planes)
    return columns * round_up(layout.padded_inputs, 4) // 4, columns * layout.groups * 2

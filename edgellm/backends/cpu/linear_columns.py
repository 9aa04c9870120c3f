"""How kernels count the columns of tiles and the lines of packed weights, see `linear_tiles.py` and `layout.py`."""

from __future__ import annotations

from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.layout import ALIGNMENT, BAND
from edgellm.backends.cpu.linear_tiles import WIDEST
from edgellm.simd import F32_LANES


@kernel
def tile_width(columns):
    """Width of a tile that begins `columns` before the end."""
    width = 1
    while width < columns and width < WIDEST:
        width *= 2
    return width


@kernel
def round_line(size):
    """Bytes rounded up to whole lines of a packed weight."""
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


@kernel
def count_stretches(op):
    """Stretches of a linear's record, and groups of a row."""
    groups = (op["inputs"] + op["group"] - 1) // op["group"]
    return (groups + op["stretch"] - 1) // op["stretch"], groups


@kernel
def piece_begin(op, stretches, number, block):
    """Where the piece of `block` in stretch `number` begins in the weights."""
    band = block // BAND * BAND
    height = min(BAND, (op["rows"] + F32_LANES - 1) // F32_LANES - band)
    begin = op["weight"] + op["head_bytes"] + band * op["block_bytes"] + number * height * op["first_bytes"]
    last = number + 1 == stretches
    return begin + (block - band) * (op["block_bytes"] - number * op["first_bytes"] if last else op["first_bytes"])


@kernel
def full_columns(columns):
    """Columns in tiles of the greatest width, the last one with its spare columns among them."""
    whole = columns // WIDEST * WIDEST
    return columns if tile_width(columns - whole) == WIDEST else whole

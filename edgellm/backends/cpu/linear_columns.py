"""How kernels count the columns of tiles and the lines of packed weights, see `linear_tiles.py` and `layout.py`."""

from __future__ import annotations

from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.layout import ALIGNMENT
from edgellm.backends.cpu.linear_tiles import WIDEST


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
def piece_bytes(groups, head_step, group_bytes):
    """Bytes of a piece, from those of a group's scales and zero points, and of its lines."""
    return round_line(groups * head_step) + round_line(groups * group_bytes)


@kernel
def full_columns(columns):
    """Columns in tiles of the greatest width, the last one with its spare columns among them."""
    whole = columns // WIDEST * WIDEST
    return columns if tile_width(columns - whole) == WIDEST else whole

"""Weights into the packed layout on the device, from what a file holds: codes where they lie in its words, and numbers.

`layout.py` says where things go, `packing.py` is the definition. A thread makes one word of the tiles, so the tiles are
written in order; words of the source are read where the tables say,

    code[r, k] = words[input_word[k] + row_word[r]] >> (input_shift[k] + row_shift[r]) & (2^stored_bits - 1)

which is `formats.CodePlaces`, and codes of one byte as well. A word of 4-bit codes has two rows. Where they are not of
one source (gate and up of a pair, or rows of two linears in one tile), each source writes its own half of the word: the
tiles are zero before, and sources follow one another on the stream.

Slot p of a source: in a plain weight its row p - first_row; in a paired one, where `half` is 0 (gate) or 1 (up), slots
p with p / 8 % 2 = half have row p / 16 * 8 + p % 8. `half` 2 stands for a plain weight.

Grid: words of a row of tiles / 256 rounded up, row tiles from `first_tile` on.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.declare import kernel
from edgellm.backends.cuda.ptx import (
    cuda,
    device,
    f32,
    f32_of_bits,
    funnel_left,
    pack_f16x2,
    u32,
    unpack_f16x2,
)

THREADS = 256
_NO_ROW = u32(0xFFFFFFFF)


@device
def row_of(slot, first_row, rows, half):
    """The source's row of a slot, `_NO_ROW` where the slot is another's."""
    row = u32(slot - first_row) if slot >= first_row else _NO_ROW
    if half < u32(2):
        mine = ((slot >> u32(3)) & u32(1)) == half
        row = u32((slot >> u32(4)) * u32(8) + (slot & u32(7))) if mine else _NO_ROW
    return row if row < rows else _NO_ROW


@device
def code_of(words, input_word, input_shift, row_word, row_shift, k, mask):
    """One code."""
    word = words[u32(input_word[k] + row_word)]
    return u32(word >> u32(input_shift[k] + row_shift)) & mask


def declare_pack_codes(bits):
    """Declare the kernel for codes that take `bits` in memory."""
    ways = 8 // bits  # rows of a word

    @kernel(
        f"pack_codes_w{bits}",
        (
            ("words", "u32*"),
            ("input_word", "u32*"),
            ("input_shift", "u32*"),
            ("row_word", "u32*"),
            ("row_shift", "u32*"),
            ("tiles", "u32*"),
            ("rows", "u32"),
            ("inputs", "u32"),
            ("steps", "u32"),
            ("first_tile", "u32"),
            ("first_row", "u32"),
            ("half", "u32"),
            ("stored_bits", "u32"),
        ),
        threads=THREADS,
        lowest=70,
    )
    def pack_codes(
        words, input_word, input_shift, row_word, row_shift, tiles, rows, inputs, steps, first_tile, first_row, half,
        stored_bits,
    ):  # fmt: skip
        at = u32(u32(cuda.blockIdx.x) * u32(THREADS) + u32(cuda.threadIdx.x))
        row_words = u32(steps * u32(64 * bits))
        if at >= row_words:
            return
        tile = u32(first_tile + u32(cuda.blockIdx.y))
        mask = u32((u32(1) << stored_bits) - u32(1))
        lane = u32((at >> u32(2)) & u32(31))
        slot = u32(tile * u32(16) + (lane >> u32(2)))
        if bits == 4:
            block = u32((at >> u32(7)) * u32(4) + (at & u32(3)))
        else:
            block = u32((at >> u32(7)) * u32(2) + ((at >> u32(1)) & u32(1)))
            slot = u32(slot + (at & u32(1)) * u32(8))
        first = u32(block * u32(16) + (lane & u32(3)) * u32(2))
        value, mine = u32(0), u32(0)
        for way in range(u32(ways)):
            row = row_of(u32(slot + way * u32(8)), first_row, rows, half)
            if row != _NO_ROW:
                mine = u32(mine | (u32(0x0F0F0F0F) << (way * u32(4)))) if bits == 4 else _NO_ROW
                begin, shift = row_word[row], row_shift[row]
                for i in range(u32(4)):
                    k = u32(first + (i & u32(1)) + (i >> u32(1)) * u32(8))
                    if k < inputs:
                        code = code_of(words, input_word, input_shift, begin, shift, k, mask)
                        place = u32((i & u32(1)) * u32(16) + (i >> u32(1)) * u32(8) + way * u32(4))
                        value = u32(value | (code << place))
        at = u32(tile * row_words + at)
        if bits == 4:
            kept = funnel_left(tiles[at], tiles[at], u32(29)) & ~mine
            value = u32(value | kept)
            tiles[at] = funnel_left(value, value, u32(3))
        elif mine != u32(0):
            tiles[at] = value

    return pack_codes


@device
def number_of(source, kind, at):
    """A stored number as float32: of float16 or bfloat16, two in a word, or float32."""
    if kind == u32(2):
        return f32_of_bits(source[at])
    half = u32(source[at >> u32(1)] >> ((at & u32(1)) << u32(4))) & u32(0xFFFF)
    if kind == u32(1):
        return f32_of_bits(u32(half << u32(16)))
    low, _ = unpack_f16x2(half)
    return low


@kernel(
    "pack_numbers",
    (
        ("source", "u32*"),
        ("tiles", "u32*"),
        ("rows", "u32"),
        ("inputs", "u32"),
        ("steps", "u32"),
        ("first_tile", "u32"),
        ("first_row", "u32"),
        ("half", "u32"),
        ("kind", "u32"),
        ("inverse", "f32"),
    ),
    threads=THREADS,
    lowest=70,
)
def pack_numbers(source, tiles, rows, inputs, steps, first_tile, first_row, half, kind, inverse):
    """Numbers [rows, inputs] as stored, in whole words, times `inverse` (1 / factor) as tiles of float16."""
    at = u32(u32(cuda.blockIdx.x) * u32(THREADS) + u32(cuda.threadIdx.x))
    row_words = u32(steps * u32(1024))
    if at >= row_words:
        return
    tile = u32(first_tile + u32(cuda.blockIdx.y))
    lane, pair = u32((at >> u32(2)) & u32(31)), u32(at & u32(3))
    slot = u32(tile * u32(16) + (lane >> u32(2)) + (pair & u32(1)) * u32(8))
    k = u32((at >> u32(7)) * u32(16) + (lane & u32(3)) * u32(2) + (pair >> u32(1)) * u32(8))
    row = row_of(slot, first_row, rows, half)
    if row == _NO_ROW:
        return
    low, high = f32(0), f32(0)
    if k < inputs:
        low = number_of(source, kind, u32(row * inputs + k)) * inverse
    if k + u32(1) < inputs:
        high = number_of(source, kind, u32(row * inputs + k + u32(1))) * inverse
    tiles[u32(tile * row_words + at)] = pack_f16x2(low, high)


for _bits in (4, 8):
    declare_pack_codes(_bits)

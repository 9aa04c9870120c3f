"""Codes from the words of a file into packed blocks, without a byte a code in between.

    code[r, j] = words[input_word[j] + row_word[r]] >> input_shift[j] & mask

covers every packing whose codes do not cross words, act-order too (`formats/stored.py`). Where the words of a block's
rows stand side by side (GPTQ) a vector reads all of them, else they are gathered one by one. AWQ's words, eight rows of
one input each, are regrouped into words of eight inputs of one row before.
"""

from __future__ import annotations

import numpy as np

from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.scratch import REGROUP_WORDS
from edgellm.simd import (
    F32_LANES,
    bitcast_f32,
    load_i32,
    load_n_f32,
    splat_i32,
    store,
    store_n,
    zero_i32,
)

_LANES = F32_LANES
_NIBBLES = REGROUP_WORDS


@kernel
def pack_codes(out, words, input_word, input_shift, row_word, sizes, stage):
    """The lines of a part of a weight (`layout.Part`): whole blocks, a stretch of their inputs.

    Args:
        out: uint8, the packed weight.
        words: int32, as stored.
        input_word, input_shift: int64 [inputs of the part], in the order of the packed columns.
        row_word: int64 [rows of the part].
        sizes: int64 [5]: bits of a packed code (4 or 8), of a stored one, inputs with their padding, where the first
            piece's lines begin, bytes of a piece.
        stage: int32 [LANES], scratch.
    """
    bits, mask, padded, lines, piece_bytes = sizes[0], (1 << sizes[1]) - 1, sizes[2], sizes[3], sizes[4]
    inputs, rows, per_word = len(input_word), len(row_word), 32 // bits
    for row in range(0, rows, _LANES):
        here = min(_LANES, rows - row)
        side_by_side = here == _LANES
        for lane in range(here):
            side_by_side &= row_word[row + lane] == row_word[row] + lane
        for lane in range(here, _LANES):
            stage[lane] = 0
        line = lines + row // _LANES * piece_bytes
        last, stored = np.int64(-1), zero_i32()
        for start in range(0, padded, per_word):
            word = zero_i32()
            for j in range(min(per_word, inputs - start)):
                at = input_word[start + j]
                if at != last:
                    last = at
                    if side_by_side:
                        stored = load_i32(words, at + row_word[row])
                    else:
                        for lane in range(here):
                            stage[lane] = words[at + row_word[row + lane]]
                        stored = load_i32(stage, 0)
                # byte b of a line: input b, of 4-bit codes in its high half input 4 + b
                code = stored >> input_shift[start + j] & splat_i32(mask)
                word |= code << (8 * (j % 4) + 4 * (j // 4))
            store(out, line, word)
            line += 4 * _LANES


@kernel
def regroup(words, stage, inputs, width):
    """AWQ's words [inputs, width] in place: nibble p of word [8 k + j, c] becomes nibble j of word [8 k + p, c].

    Args:
        words: float32 [inputs * width], the words' bits; inputs a multiple of 8.
        stage: float32 [REGROUP_STAGE], scratch.
    """
    bits = stage.view(np.int32)
    for k in range(0, inputs, _NIBBLES):
        for c in range(0, width, _LANES):
            count = min(_LANES, width - c)
            for j in range(_NIBBLES):
                store(stage, j * _LANES, load_n_f32(words, (k + j) * width + c, count))
            for p in range(_NIBBLES):
                word = zero_i32()
                for j in range(_NIBBLES):
                    word |= (load_i32(bits, j * _LANES) >> 4 * p & splat_i32(15)) << 4 * j
                store_n(words, (k + p) * width + c, bitcast_f32(word), count)

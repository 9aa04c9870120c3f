"""The largest logit of each part of a row: what greedy decoding needs, while logits are still in the threads' caches.

    best[row, part] = the largest of the part's logits with ids below `limit`; NaN where one of the part, whatever its
                      id, is NaN or infinite

Python finds the token in the one part that has the largest of all (`choosing.py`): going through all logits of a large
vocabulary, twice with the check, took it 74 us (Qwen2.5-0.5B, Zen 4).
"""

from __future__ import annotations

import numpy as np

from edgellm.backends.cpu.choosing import PARTS
from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.work import share
from edgellm.simd import (
    F32_LANES,
    first_n,
    fma,
    load_f32,
    load_n_f32,
    maximum,
    reduce_add,
    reduce_max,
    select,
    splat_f32,
    zero_f32,
)

_LOWEST = np.float32(-np.inf)


@kernel
def op_best(act, at, logits, vocab, size, limit, rows, ith, nth):
    """The parts, of `size` ids, of `rows` rows of `vocab` logits into act[at ...], float32 [rows, PARTS]."""
    first, last = share(ith, nth, rows * PARTS)
    for piece in range(first, last):
        begin = min(piece % PARTS * size, vocab)
        end = min(begin + size, vocab)
        row = piece // PARTS * vocab
        most, poison, lowest = splat_f32(_LOWEST), zero_f32(), splat_f32(_LOWEST)
        for i in range(begin, end, F32_LANES):
            count = min(end - i, F32_LANES)
            x = load_f32(logits, row + i) if count == F32_LANES else load_n_f32(logits, row + i, count)
            poison = fma(x, zero_f32(), poison)
            most = maximum(select(first_n(min(max(limit - i, 0), count)), x, lowest), most)
        act[at + piece] = reduce_max(most) + reduce_add(poison)

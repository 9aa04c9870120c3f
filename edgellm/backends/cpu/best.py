"""The token with the largest logit: what greedy decoding needs, found while logits are still in the threads' caches.

    best[row, part] = the largest of the part's logits with ids below `limit`; NaN where one of the part, whatever its
                      id, is NaN or infinite
    token[row]      = the first id with the largest of all; -1 where there is a NaN

Going through all logits of a large vocabulary, twice with the check, took Python 74 us a token, out of caches that the
weights had emptied (Qwen2.5-0.5B, Zen 4).
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


@kernel(shared=True)
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


@kernel(shared=True)
def op_token(act, at, tokens, logits, vocab, size, limit, rows, ith, nth):
    """The tokens of `rows` rows into act[tokens ...], as floats, from the parts that `op_best` left at act[at ...]."""
    first, last = share(ith, nth, rows)
    for row in range(first, last):
        best, found, finite = _LOWEST, 0, True
        for part in range(PARTS):
            value = act[at + row * PARTS + part]
            finite &= not np.isnan(value)
            if value > best:
                best, found = value, part
        token = min(found * size, vocab)
        while token < min((found + 1) * size, limit) and logits[row * vocab + token] != best:
            token += 1
        act[tokens + row] = np.float32(token if finite else -1)

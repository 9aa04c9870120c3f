"""A large lm_head at half its bytes: all rows to half of their bits, then the other half of those that may win.

A token is drawn from the largest logits; of a vocabulary of 150,000 the others hardly matter, yet their rows are a
third of what a small model reads for a token. So where a step's logits are only drawn from (`Batch.exact`), and for one
sequence, a weight in halves (`layout.py`) is gone through as [the preview of SVD-softmax, Shim et al., NIPS 2017, with
bit planes in place of singular vectors]

    logits = high halves                               of all rows
    peak   = largest logit of a block of LANES rows
    logits += low halves                               of the `REFINED` blocks with the highest peaks

The logits of those rows are, to the bit, what both halves of all rows give. The others keep the error of a low half: of
Gaussian weights and inputs 0.13 of the logits' standard deviation where 8 bits are halved, 0.31 where 4 are. On real
models, at 5888 positions of held-out text, with as large a share of the rows refined as 256 and 512 blocks are of
128,000 rows; mean KL divergence from all bits of all rows, and how often the first token is the same:

                                     8 bits halved, 3 %   4 bits halved, 6 %   (all 4 bits, from float weights)
    embedded model, 2048 rows        0.0007  1.0000       0.0044  1.0000       (0.0023  0.9688)
    stories260K,     512 rows        0.0040  1.0000       0.0186  0.9998       (0.0195  0.9158)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgellm.backends.cpu.halves import REFINED
from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.layout import LinearKind
from edgellm.backends.cpu.linear_int import op_linear_int2, op_linear_int4
from edgellm.backends.cpu.linear_tiles import STAGE
from edgellm.backends.cpu.work import share
from edgellm.simd import (
    F32_LANES,
    load_f32,
    maximum,
    minimum,
    reduce_add,
    reduce_max,
    select,
    splat_f32,
    zero_f32,
)

_LANES = F32_LANES
#: Halvings of the range of peaks until their bound is as good as float32 tells them apart.
_HALVINGS = 24
_LOWEST = np.float32(-3e38)


@kernel
def op_peaks(act, at, logits, rows, ith, nth):
    """The largest logit of each block into act[at ...], `_LOWEST` up to a whole number of vectors behind them."""
    blocks = (rows + _LANES - 1) // _LANES
    first, last = share(ith, nth, (blocks + _LANES - 1) // _LANES * _LANES)
    for block in range(first, last):
        row, peak = block * _LANES, _LOWEST
        if row + _LANES <= rows:
            peak = reduce_max(load_f32(logits, row))
        else:
            for i in range(row, rows):
                peak = max(peak, logits[i])
        act[at + block] = peak


@kernel
def _count(act, at, padded, bound):
    """How many of the peaks reach `bound`."""
    total, least = zero_f32(), splat_f32(bound)
    for i in range(at, at + padded, _LANES):
        total += select(load_f32(act, i) >= least, splat_f32(1.0), zero_f32())
    return np.int64(reduce_add(total))


@kernel
def _bound(act, at, blocks, padded, wanted):
    """A bound that `wanted` peaks or an eighth more reach; more where some are equal, none where they are NaN."""
    highest, lowest = load_f32(act, at), load_f32(act, at)
    for i in range(0, blocks - blocks % _LANES, _LANES):
        peaks = load_f32(act, at + i)
        highest, lowest = maximum(peaks, highest), minimum(peaks, lowest)
    low, high = -reduce_max(-lowest), reduce_max(highest)
    for _ in range(_HALVINGS):
        middle = low + (high - low) * np.float32(0.5)
        count = _count(act, at, padded, middle)
        if count < wanted:
            high = middle
        else:
            low = middle
            if count <= wanted + wanted // 8:
                break
    return low


def make_refine(op_linear: Callable[..., None], wanted: int) -> Callable[..., None]:
    """The op over linears of `op_linear` that gives all bits to `wanted` blocks."""

    @kernel
    def op_refine(logits, quads, xs, stage, weights, act, op, planes, ith, nth):
        at, blocks = op["other"], (op["rows"] + _LANES - 1) // _LANES
        padded = (blocks + _LANES - 1) // _LANES * _LANES
        bound = _bound(act, at, blocks, padded, wanted)
        first, last = share(ith, nth, _count(act, at, padded, bound))
        number = 0
        for block in range(blocks):
            if act[at + block] >= bound:
                if first <= number < last:
                    op_linear(logits, quads, xs, stage, weights, op, 1, planes, block, block + 1, ith * STAGE)
                number += 1

    return op_refine


#: op_refine(logits, quads, xs, stage, weights, act, op, planes, ith, nth) adds one token's products of the low halves
#: of the blocks with the highest peaks, which are at act[op.other ...] as `op_peaks` left them. The rest as in
#: `linear_int.py`, whose op adds those of all blocks.
op_refine_int2 = make_refine(op_linear_int2, REFINED[LinearKind.INT2])
op_refine_int4 = make_refine(op_linear_int4, REFINED[LinearKind.INT4])

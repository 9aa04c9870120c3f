"""An lm_head at a third of its bytes: two bits of all rows, and the others of those that may win.

A token is chosen from the largest logits; of a vocabulary of 150,000 the others hardly matter, yet their rows are a
third of what a small model reads for a token. So for one sequence a weight in slices (`layout.py`) is gone through as
[the preview of SVD-softmax, Shim et al., NIPS 2017, with bit planes in place of singular vectors]

    logits  = first slice       of all rows
    peak    = largest logit     of a block of LANES rows
    logits += second slice      of the blocks with the highest peaks, 8192 rows or an eighth more
    peak    = anew              where there is a third slice
    logits += third slice       of the blocks with the highest peaks, 2048 rows or an eighth more

Where any token may be drawn (`LogitsUse`), the second of three slices is read of all rows; where all logits count,
all are. Rows that are read in full have, to the bit, the logits that all slices of all rows give. The others keep the
error of what they lack: of Gaussian weights and inputs and 8 bits 0.10 of the logits' standard deviation from 4 of them
and 0.41 from 2, of 4 bits 0.31 from 2. On real models, small ones, at 5888 positions of held-out text, with as large a
share of the rows refined as those are of 128,000 (so of few: 131 and 33, 33 and 8), against all bits of all rows:

                                 largest: same one, draws of the best 20    drawn: KL    4 bits: KL, same largest
    embedded model, 2048 rows             1.0000    0.0002                     0.0010    0.0043  1.0000
    stories260K,     512 rows             0.9992    0.0267                     0.0092    0.0175  0.9998

where draws are compared by total variation, and KL is the mean divergence. An lm_head rounded to 4 bits differs from
the float one by a KL divergence of 0.0023 and 0.0195 and has the same largest logit in 0.9688 and 0.9158.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.layout import LinearKind
from edgellm.backends.cpu.linear_int import make_block
from edgellm.backends.cpu.linear_tiles import STAGE
from edgellm.backends.cpu.slices import refined_blocks
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


@kernel(shared=True)
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


@kernel
def _next(act, at, block, blocks, bound):
    """The first block from `block` on whose peak reaches the bound, `blocks` where none does."""
    while block < blocks and not act[at + block] >= bound:
        block += 1
    return block


def make_refine(bits: int, wanted: int) -> Callable[..., None]:
    """The op over slices of so many bits for `wanted` blocks."""
    op_block = make_block(bits)

    @kernel(shared=True)
    def op_refine(logits, quads, xs, stage, weights, act, op, planes, ith, nth):
        at, blocks = op["other"], (op["rows"] + _LANES - 1) // _LANES
        padded = (blocks + _LANES - 1) // _LANES * _LANES
        bound = _bound(act, at, blocks, padded, wanted)
        first, last = share(ith, nth, _count(act, at, padded, bound))
        block = _next(act, at, 0, blocks, bound)
        for _ in range(first):
            block = _next(act, at, block + 1, blocks, bound)
        for _ in range(first, last):
            if block >= blocks:  # of fewer blocks than lanes all are taken, and what fills their vector up was counted
                return
            following = _next(act, at, block + 1, blocks, bound)
            op_block(logits, quads, xs, stage, weights, op, planes, block, following, ith * STAGE)
            block = following

    return op_refine


#: op_refine(logits, quads, xs, stage, weights, act, op, planes, ith, nth) adds one token's products of a slice, for the
#: blocks with the highest peaks, which are at act[op.other ...] as `op_peaks` left them. The rest as in
#: `linear_int.py`, whose op adds those of all blocks.
op_refine_int2 = make_refine(2, refined_blocks(LinearKind.INT2))
op_refine_int4 = make_refine(4, refined_blocks(LinearKind.INT4))

"""Top-k and top-p on the device without sorting: `sample_threshold` leaves each row the least logit that is kept.

What a row keeps is counted in steps below its largest logit: distance = (largest - logit) / temperature, in units of
log2, so that a token weighs 2^-distance. Distances are sorted into 256 bins, tokens counted and weights summed in each
(as whole numbers of 2^-40, whose sum depends on no order), and the bin where the wanted count or share is reached is
divided anew, down to 2^-19 or what float32 tells apart; where it lies beyond the last bin, bins are made wider first.
Tokens that tie within that are all kept.

    top_k   the fewest bins, nearest first, with at least k tokens
    top_p   the fewest of those, whose weight is at least p of the weight that top_k leaves

A block has a row.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.declare import kernel
from edgellm.backends.cuda.kernels.record import RECORD_WORDS, TEMPERATURE, TOP_K, TOP_P, VOCAB
from edgellm.backends.cuda.ptx import (
    atomic_add_shared,
    cuda,
    device,
    ex2,
    f32,
    f32_of_bits,
    f32_of_u32,
    fmax,
    griddep_launch,
    griddep_wait,
    rcp,
    u32,
    u64,
    warp_max,
)

_THREADS = 1024
_BLOCK = u32(_THREADS)
_WARPS = 32
_AT_ONCE = 8  # loads of a thread under way: a block alone waits for the L2 cache, some ten times
_BINS = 256
_LOG2_E = f32(1.4426950408889634)
_LOWEST = f32(float("-inf"))
_ONE = f32(2.0**40)
_WORDS = 2 * _BINS
_FIRST_WIDTH, _FINEST, _WIDEST = f32(1.0 / 8.0), f32(2.0**-19), f32(2.0**100)


@device
def block_most(value, stage):
    """The largest of the block, in every thread; `stage`: float32 [warps], shared."""
    value = warp_max(value)
    cuda.syncthreads()
    stage[u32(cuda.threadIdx.x) >> u32(5)] = value
    cuda.syncthreads()
    for warp in range(u32(_WARPS)):
        value = fmax(value, stage[warp])
    return value


@device
def read_some(v, logits, at, i, vocab):
    """A thread's next logits from i on, all loads under way before one is used; the least number beyond the last."""
    for j in range(u32(_AT_ONCE)):
        token = u32(i + j * _BLOCK)
        v[j] = logits[at + token] if token < vocab else _LOWEST


@device
def add_to_bin(bins, i, amount):
    """Add a u64 to bin i, as words [low][high]."""
    low, high = u32(amount), u32(amount >> u64(32))
    before = atomic_add_shared(bins, i, low)
    high = u32(high + u32(1)) if u32(before + low) < low else high
    if high != u32(0):
        atomic_add_shared(bins, u32(i + u32(_BINS)), high)


@device
def count_bins(bins, logits, at, vocab, largest, factor, least, near, width, open_end, share):
    """Sort the tokens of at least `least` by distance into bins from `near` on, each `width` wide: tokens counted, or,
    with `share`, weights summed. If `open_end`, the last bin has the weights of all that is beyond the others, and no
    count: that is nearly every token, so each thread sums its own first."""
    beyond = u64(0)
    thread = u32(cuda.threadIdx.x)
    cuda.syncthreads()
    if thread < u32(2 * _BINS):
        bins[thread] = u32(0)
    cuda.syncthreads()
    v = cuda.local.array(_AT_ONCE, f32)
    i = thread
    while i < vocab:
        read_some(v, logits, at, i, vocab)
        for j in range(u32(_AT_ONCE)):
            distance = (largest - v[j]) * factor
            place = (distance - near) * rcp(width)
            if v[j] >= least and place >= f32(0.0):
                amount = u64(ex2(-distance) * _ONE) if share else u64(1)
                if open_end and place >= f32(_BINS - 1):
                    beyond += amount
                elif place < f32(_BINS):
                    add_to_bin(bins, u32(place), amount)
        i = u32(i + u32(_AT_ONCE) * _BLOCK)
    if share and beyond != u64(0):
        add_to_bin(bins, u32(_BINS - 1), beyond)
    cuda.syncthreads()


@device
def bin_amount(bins, i):
    """What bin i has, u64."""
    return u64(bins[i]) | (u64(bins[i + u32(_BINS)]) << u64(32))


@device
def least_kept(bins, stage, logits, at, vocab, largest, factor, least, wanted, share):
    """The least logit among the nearest tokens that make `wanted` tokens, or with `share` that part of the weight."""
    near, width, before = f32(0.0), _FIRST_WIDTH, u64(0)
    first = True
    going = True
    while going:
        count_bins(bins, logits, at, vocab, largest, factor, least, near, width, first, share)
        if share and first and width == _FIRST_WIDTH:
            total = u64(0)
            for i in range(u32(_BINS)):
                total += bin_amount(bins, i)
            wanted = wanted * f32(total)
        found, passed = u32(0), before
        while found < u32(_BINS - 1) and f32(passed + bin_amount(bins, found)) < wanted:
            passed += bin_amount(bins, found)
            found = u32(found + u32(1))
        if first and found == u32(_BINS - 1):
            width = width * f32(_BINS)
            going = width < _WIDEST
        else:
            first = False
            before = passed
            near += f32_of_u32(found) * width
            finer = width * f32(1.0 / _BINS)
            going = finer >= _FINEST and finer > near * f32(2.0**-22)
            width = finer if going else width
    edge = near + width
    least_now = f32(float("inf"))
    v = cuda.local.array(_AT_ONCE, f32)
    i = u32(cuda.threadIdx.x)
    while i < vocab:
        read_some(v, logits, at, i, vocab)
        for j in range(u32(_AT_ONCE)):
            if v[j] >= least and (first or (largest - v[j]) * factor < edge):
                least_now = v[j] if v[j] < least_now else least_now
        i = u32(i + u32(_AT_ONCE) * _BLOCK)
    return -block_most(-least_now, stage)


@kernel(
    "sample_threshold",
    (("logits", "f32*"), ("record", "u32*"), ("thresholds", "f32*"), ("stride", "u32")),
    threads=_THREADS,
    lowest=70,
    registers=64,
)
def sample_threshold(logits, record, thresholds, stride):
    """logits [rows, stride], the first `VOCAB` of a row count, to thresholds [rows]: the least logit that is kept."""
    griddep_wait()
    griddep_launch()
    bins = cuda.shared.array(_WORDS, u32, alignment=16)
    stage = cuda.shared.array(_WARPS, f32, alignment=16)
    row, thread = u32(cuda.blockIdx.x), u32(cuda.threadIdx.x)
    own, at = u32(row * u32(RECORD_WORDS)), u32(row * stride)
    temperature = f32_of_bits(record[own + u32(TEMPERATURE)])
    top_k, top_p = record[own + u32(TOP_K)], f32_of_bits(record[own + u32(TOP_P)])
    vocab = record[own + u32(VOCAB)]
    least = _LOWEST
    if temperature != f32(0.0):
        largest = _LOWEST
        v = cuda.local.array(_AT_ONCE, f32)
        i = thread
        while i < vocab:
            read_some(v, logits, at, i, vocab)
            for j in range(u32(_AT_ONCE)):
                largest = fmax(largest, v[j])
            i = u32(i + u32(_AT_ONCE) * _BLOCK)
        largest = block_most(largest, stage)
        factor = _LOG2_E * rcp(temperature)
        if top_k != u32(0) and top_k < vocab:
            least = least_kept(bins, stage, logits, at, vocab, largest, factor, least, f32_of_u32(top_k), False)
        if top_p < f32(1.0):
            least = least_kept(bins, stage, logits, at, vocab, largest, factor, least, top_p, True)
    if thread == u32(0):
        thresholds[row] = least

"""The end of split attention: warps put together in a block, and blocks over the splits (`partials.py`).

`gather` is shared memory of a block: the weighted values [warps][heads][width], then LARGEST and TOTAL
[warps][heads][2].
"""

from __future__ import annotations

from typing import Any

from edgellm.backends.cuda.kernels.partials import EMPTY, LARGEST, STATS, TOTAL
from edgellm.backends.cuda.ptx import (
    atomic_inc,
    cuda,
    device,
    ex2,
    f32,
    fence,
    fma,
    fmax,
    rcp,
    u32,
    u64,
)

_EMPTY = f32(EMPTY)
_EIGHT = u32(8)
_STATS, _LARGEST, _TOTAL = u32(STATS), u32(LARGEST), u32(TOTAL)


def gathered_floats(warps: int, heads: int, width: int) -> int:
    """Floats of `gather`."""
    return warps * heads * (width + STATS)


def gather_warp(warps: int, heads: int, width: int) -> Any:
    """Device function: a warp leaves what its first row group has."""
    stats_at = u32(warps * heads * width)

    @device
    def leave(gather, weighted, largest, mass, first, lane, warp):
        if lane < u32(width // 8):
            for h in range(u32(heads)):
                for e in range(_EIGHT):
                    at = (warp * u32(heads) + h) * u32(width) + first + e
                    gather[at] = weighted[h * _EIGHT + e]
        if lane == u32(0):
            for h in range(u32(heads)):
                at = stats_at + (warp * u32(heads) + h) * _STATS
                gather[at + _LARGEST] = largest[h]
                gather[at + _TOTAL] = mass[h]

    return leave


def sum_warps(warps: int, heads: int, width: int) -> Any:
    """Device function: (largest, total, weighted value) of element `e` of head `h`, over the warps in their order."""
    stats_at = u32(warps * heads * width)

    @device
    def total_of(gather, h, e):
        most = _EMPTY
        for warp in range(u32(warps)):
            most = fmax(most, gather[stats_at + (warp * u32(heads) + h) * _STATS + _LARGEST])
        total, value = f32(0.0), f32(0.0)
        for warp in range(u32(warps)):
            at = warp * u32(heads) + h
            weight = ex2(gather[stats_at + at * _STATS + _LARGEST] - most)
            total = fma(weight, gather[stats_at + at * _STATS + _TOTAL], total)
            value = fma(weight, gather[at * u32(width) + e], value)
        return most, total, value

    return total_of


@device
def came_last(counters, at, blocks, flag, thread):
    """Whether this block is the last of `blocks` to come; all others' writes are then seen. `flag`: u32 [1], shared."""
    fence()
    cuda.syncthreads()
    if thread == u32(0):
        flag[0] = atomic_inc(counters, at, u32(blocks - u32(1)))
    cuda.syncthreads()
    last = flag[0] == u32(blocks - u32(1))
    if last:
        fence()
    return last


@device
def combined(sums, stats, partial, splits, head_dim, e):
    """Element `e` of the output of a head whose first split is number `partial`, over `splits` splits with keys."""
    most = _EMPTY
    split = partial
    while split < u32(partial + splits):
        most = fmax(most, stats[split * _STATS + _LARGEST])
        split = u32(split + u32(1))
    total, value = f32(0.0), f32(0.0)
    split = partial
    while split < u32(partial + splits):
        weight = ex2(stats[split * _STATS + _LARGEST] - most)
        total = fma(weight, stats[split * _STATS + _TOTAL], total)
        value = fma(weight, sums[split * head_dim + e], value)
        split = u32(split + u32(1))
    return value * rcp(total)


def write_block(warps: int, heads: int, width: int) -> Any:
    """Device function: what a block has found goes to `out` where it is alone or comes last, else to the splits."""
    total_of = sum_warps(warps, heads, width)

    @device
    def write(
        gather,
        flag,
        sums,
        stats,
        counters,
        out,
        target,
        partial,
        counter,
        here,
        head_dim,
        splits,
        active,
        combine,
        thread,
    ):
        alone = combine != u32(0) and active == u32(1)
        i = thread
        while i < u32(heads * width):
            h, e = u32(i // u32(width)), u32(i % u32(width))
            if h < here and e < head_dim:
                most, total, value = total_of(gather, h, e)
                if alone:
                    out[target + h * head_dim + e] = value * rcp(total)
                else:
                    sums[u64(partial + h * splits) * u64(head_dim) + u64(e)] = value
                    if e == u32(0):
                        stats[(partial + h * splits) * _STATS + _LARGEST] = most
                        stats[(partial + h * splits) * _STATS + _TOTAL] = total
            i = u32(i + u32(32 * warps))
        if combine == u32(0) or alone:
            return
        if came_last(counters, counter, active, flag, thread):
            first = u32(partial - u32(cuda.blockIdx.x))
            i = thread
            while i < u32(heads * width):
                h, e = u32(i // u32(width)), u32(i % u32(width))
                if h < here and e < head_dim:
                    out[target + h * head_dim + e] = combined(sums, stats, first + h * splits, active, head_dim, e)
                i = u32(i + u32(32 * warps))

    return write

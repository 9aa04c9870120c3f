"""The beginning of decode attention: a block's queries, and the token's own key and value, in shared memory.

`stage` is float32: `heads` queries of `width` elements by position, as many by number, then the own key and value. A
warp has a head at a time (`heads.py`).
"""

from __future__ import annotations

from typing import Any

from edgellm.backends.cuda.kernels.heads import normalise_head, take_head, turn_head
from edgellm.backends.cuda.kernels.stored import STORAGES
from edgellm.backends.cuda.ptx import device, u32


def stage_queries(heads: int, width: int, warps: int) -> Any:
    """Device function: the block's queries, by position and, once tokens have left, behind them by number."""

    @device
    def put(
        stage,
        q,
        numbered,
        weight,
        turns,
        source,
        here,
        head_dim,
        half,
        number,
        evicted,
        fused,
        norm,
        eps,
        offset,
        lane,
        warp,
    ):
        head = warp
        while head < u32(heads):
            at = u32(head * u32(width))
            ahead = u32(at + u32(heads * width))
            length = head_dim if head < here else u32(0)
            begin = u32(source + head * head_dim) if head < here else source
            take_head(stage, at, q, begin, length, u32(width), lane)
            if fused == u32(0):
                if evicted != u32(0):
                    take_head(stage, ahead, numbered, begin, length, u32(width), lane)
            else:
                if norm != u32(0):
                    normalise_head(stage, at, weight, length, eps, offset, lane)
                if evicted != u32(0):
                    turn_head(stage, ahead, stage, at, turns, half, number, u32(width), lane)
                turn_head(stage, at, stage, at, turns, half, u32(number - evicted), u32(width), lane)
            head = u32(head + u32(warps))

    return put


def stage_own(storage: str, heads: int, width: int, warps: int) -> Any:
    """Device function: the token's own key and value behind the queries and, where `keep`, in the cache."""
    round_head = STORAGES[storage].round
    own_key, own_value = u32(2 * heads * width), u32((2 * heads + 1) * width)

    @device
    def put(
        stage,
        k,
        v,
        weight,
        turns,
        keys,
        values,
        key_scales,
        value_scales,
        source,
        place,
        keep,
        head_dim,
        depth,
        half,
        number,
        norm,
        eps,
        offset,
        lane,
        warp,
    ):
        if warp == u32(warps - 1):
            take_head(stage, own_key, k, source, head_dim, u32(width), lane)
            if norm != u32(0):
                normalise_head(stage, own_key, weight, head_dim, eps, offset, lane)
            turn_head(stage, own_key, stage, own_key, turns, half, number, u32(width), lane)
            round_head(keys, key_scales, place, keep, stage, own_key, depth, lane)
        if warp == u32(warps - 2):
            take_head(stage, own_value, v, source, head_dim, u32(width), lane)
            round_head(values, value_scales, place, keep, stage, own_value, depth, lane)

    return put

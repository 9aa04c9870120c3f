"""A step's keys and values enter the cache: keys turned by their token's number, both rounded to the storage.

`cache_layout.py` has where they go and how they are rounded. With `norm` a key first goes through RMSNorm with `weight`
[head_dim]. Grid: KV heads / 4 rounded up, rows; a warp has a KV head of a token. Bytes: 8 an element read, 2 or 4
written. Row r belongs to record r where `step` is 1 (a decode step), else it is token r of record 0.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.cache_layout import DEPTH_ALIGNMENT, MAX_HEAD_DIM
from edgellm.backends.cuda.kernels.declare import Kernel, kernel
from edgellm.backends.cuda.kernels.heads import normalise_head, take_head, turn_head
from edgellm.backends.cuda.kernels.record import COUNT, END, RECORD_WORDS, SINKS, SLOT
from edgellm.backends.cuda.kernels.stored import STORAGES
from edgellm.backends.cuda.kernels.visible import row_of
from edgellm.backends.cuda.ptx import (
    cuda,
    f32,
    griddep_launch,
    griddep_wait,
    u32,
    u64,
)

_WARPS = 4
_STAGE = _WARPS * MAX_HEAD_DIM
_DEPTH = u32(MAX_HEAD_DIM)
_PADDING = u32(DEPTH_ALIGNMENT - 1)


def _declare(storage: str) -> Kernel:
    element, round_head = STORAGES[storage].element, STORAGES[storage].round

    @kernel(
        f"store_kv_{storage}",
        (
            ("k", "f32*"),
            ("v", "f32*"),
            ("keys", element),
            ("values", element),
            ("key_scales", "f32*"),
            ("value_scales", "f32*"),
            ("turns", "u64*"),
            ("weight", "f32*"),
            ("record", "u32*"),
            ("stride", "u32"),
            ("kv_heads", "u32"),
            ("head_dim", "u32"),
            ("half", "u32"),
            ("rows", "u32"),
            ("ring", "u32"),
            ("step", "u32"),
            ("norm", "u32"),
            ("eps", "f32"),
            ("offset", "f32"),
        ),
        threads=32 * _WARPS,
        lowest=70,
        registers=48,
    )
    def store_kv(
        k,
        v,
        keys,
        values,
        key_scales,
        value_scales,
        turns,
        weight,
        record,
        stride,
        kv_heads,
        head_dim,
        half,
        rows,
        ring,
        step,
        norm,
        eps,
        offset,
    ):
        """Store k, v [tokens, stride] in the layer's `rows` rows a slot; `ring` 1: the layer keeps only its window."""
        griddep_wait()
        griddep_launch()
        stage = cuda.shared.array(_STAGE, f32, alignment=16)
        warp = u32(u32(cuda.threadIdx.x) >> u32(5))
        lane = u32(u32(cuda.threadIdx.x) & u32(31))
        head = u32(u32(cuda.blockIdx.x) * u32(_WARPS) + warp)
        token = u32(cuda.blockIdx.y)
        own = u32(token * step * u32(RECORD_WORDS))
        index = u32(token - token * step)
        if head >= kv_heads or index >= record[own + u32(COUNT)]:
            return
        number = u32(record[own + u32(END)] + index)
        depth = u32(u32(head_dim + _PADDING) & ~_PADDING)
        row = row_of(number, record[own + u32(SINKS)], rows, ring)
        place = u64(u32(record[own + u32(SLOT)] * kv_heads + head)) * u64(rows) + u64(row)
        at, source = u32(warp * _DEPTH), u32(token * stride + head * head_dim)
        take_head(stage, at, k, source, head_dim, depth, lane)
        if norm != u32(0):
            normalise_head(stage, at, weight, head_dim, eps, offset, lane)
        turn_head(stage, at, stage, at, turns, half, number, depth, lane)
        round_head(keys, key_scales, place, True, stage, at, depth, lane)
        take_head(stage, at, v, source, head_dim, depth, lane)
        round_head(values, value_scales, place, True, stage, at, depth, lane)

    return store_kv


store_kv_float16 = _declare("float16")
store_kv_int8 = _declare("int8")

"""Attention of few tokens over a long context: split over the keys, every query head of a KV head at once.

    out = softmax(softcap(q . k * scale)) v      over the rows that `visible.py` names

A block has one split of the context of one token, one KV head and up to `heads` of its query heads; its four warps take
keys in turn (`attention_rows.py`). `lanes` lanes share a row, eight elements each, so a warp reads 32 / lanes rows with
one load of 128 bits (int8: 64) a lane, up to four of keys and four of values under way, and each row serves all the
heads. Sums are put together first in the warp, then in the block, then over the splits (`partials.py`), always in the
same order: results are deterministic and do not depend on what else is in the batch.

With `fused` q, k and v are what the linear gave: the block itself normalises (`norm`), turns and rounds its queries and
the token's own key and value, and split 0 stores these, so that one launch does qk_norm, RoPE, the cache's row and
attention. The own row then comes from the block, never from memory: nobody waits for a store. Without it q is turned
already, to the position in `q`, to the number in `numbered` (read only once something was evicted), and the own row is
in memory; `step` 0 then takes the tokens of record 0 as rows, few of a prefill step, or many where no tensor core is.

Grid: splits, KV heads * tiles of query heads (ceil(group / heads)), rows. Bytes: two rows of the cache a key, once a
tile. A split has ceil(keys / splits) keys, at least `SPLIT_KEYS`; those without keys end at once. With `combine` the
last block of a row and tile, found by `counters` (u32 [rows][grid y], zeros), writes `out`; otherwise `sums` and
`stats` are left to whoever reads them.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.attention_finish import gather_warp, gathered_floats, write_block
from edgellm.backends.cuda.kernels.attention_rows import row_attention
from edgellm.backends.cuda.kernels.attention_stage import stage_own, stage_queries
from edgellm.backends.cuda.kernels.cache_layout import DEPTH_ALIGNMENT
from edgellm.backends.cuda.kernels.declare import Kernel, kernel
from edgellm.backends.cuda.kernels.partials import DECODE_HEADS, DECODE_LANES, EMPTY, LARGEST, SPLIT_KEYS, STATS, TOTAL
from edgellm.backends.cuda.kernels.record import COUNT, END, EVICTED, RECORD_WORDS, SINKS, SLOT
from edgellm.backends.cuda.kernels.stored import STORAGES
from edgellm.backends.cuda.kernels.visible import later_run, oldest_of, row_of, sinks_run
from edgellm.backends.cuda.ptx import (
    cuda,
    f32,
    griddep_launch,
    griddep_wait,
    rcp,
    u32,
    u64,
)

_WARPS = 4
_PADDING = u32(DEPTH_ALIGNMENT - 1)
_LOG2_E = f32(1.4426950408889634)
_EMPTY = f32(EMPTY)
_REGISTERS = {1: 160, 2: 224, 4: 255}
_UNROLL = {1: 4, 2: 4, 4: 2}  # rows at once a lane
_STATS, _LARGEST, _TOTAL = u32(STATS), u32(LARGEST), u32(TOTAL)
_PARAMETERS = (
    ("q", "f32*"),
    ("numbered", "f32*"),
    ("k", "f32*"),
    ("v", "f32*"),
    ("q_weight", "f32*"),
    ("k_weight", "f32*"),
    ("turns", "u64*"),
    ("record", "u32*"),
    ("keys", ""),
    ("values", ""),
    ("key_scales", "f32*"),
    ("value_scales", "f32*"),
    ("sums", "f32*"),
    ("stats", "f32*"),
    ("counters", "u32*"),
    ("out", "f32*"),
    ("q_stride", "u32"),
    ("kv_stride", "u32"),
    ("out_stride", "u32"),
    ("kv_heads", "u32"),
    ("group", "u32"),
    ("head_dim", "u32"),
    ("half", "u32"),
    ("rows", "u32"),
    ("ring", "u32"),
    ("window", "u32"),
    ("splits", "u32"),
    ("step", "u32"),
    ("fused", "u32"),
    ("norm", "u32"),
    ("combine", "u32"),
    ("eps", "f32"),
    ("offset", "f32"),
    ("scale", "f32"),
    ("softcap", "f32"),
)


def _declare(storage: str, lanes: int, heads: int) -> Kernel:
    element, scaled = STORAGES[storage].element, STORAGES[storage].scaled
    width = 8 * lanes  # of a head in shared memory
    staged, gathered = (2 * heads + 2) * width, gathered_floats(_WARPS, heads, width)
    elements = 8 * heads
    core = row_attention(storage, lanes, heads, _UNROLL[heads], _WARPS)
    load_queries, absorb_run, absorb_own, merge_groups = (
        core.load_queries,
        core.absorb_run,
        core.absorb_own,
        core.merge_groups,
    )
    put_queries, put_own = stage_queries(heads, width, _WARPS), stage_own(storage, heads, width, _WARPS)
    leave, write = gather_warp(_WARPS, heads, width), write_block(_WARPS, heads, width)
    ahead, own_key, own_value = u32(heads * width), u32(2 * heads * width), u32((2 * heads + 1) * width)

    @kernel(
        f"attention_decode_{storage}_d{width}_h{heads}",
        tuple((name, kind or element) for name, kind in _PARAMETERS),
        threads=32 * _WARPS,
        lowest=70,
        registers=_REGISTERS[heads],
        expects=("LDG.E.*64",) if scaled else ("LDG.E.*128",),
    )
    def attention_decode(
        q, numbered, k, v, q_weight, k_weight, turns, record, keys, values, key_scales, value_scales, sums, stats,
        counters, out, q_stride, kv_stride, out_stride, kv_heads, group, head_dim, half, rows, ring, window, splits,
        step, fused, norm, combine, eps, offset, scale, softcap,
    ):  # fmt: skip
        """One split; see the module. `softcap` 0 and `window` 0: none. Buffers are [rows, stride] of whole heads."""
        griddep_wait()
        griddep_launch()
        stage = cuda.shared.array(staged, f32, alignment=16)
        gather = cuda.shared.array(gathered, f32, alignment=16)
        flag = cuda.shared.array(1, u32, alignment=16)
        thread, split, row = u32(cuda.threadIdx.x), u32(cuda.blockIdx.x), u32(cuda.blockIdx.z)
        lane, warp = u32(thread & u32(31)), u32(thread >> u32(5))
        tiles = u32(u32(group + u32(heads - 1)) // u32(heads))
        kv_head = u32(u32(cuda.blockIdx.y) // tiles)
        tile = u32(u32(cuda.blockIdx.y) - kv_head * tiles)
        first_head = u32(kv_head * group + tile * u32(heads))
        here = u32(group - tile * u32(heads))
        here = here if here < u32(heads) else u32(heads)
        own = u32(row * step * u32(RECORD_WORDS))
        index = u32(row - row * step)
        if index >= record[own + u32(COUNT)]:
            return
        number, evicted, sinks = (
            u32(record[own + u32(END)] + index),
            record[own + u32(EVICTED)],
            record[own + u32(SINKS)],
        )
        head_rows = u64(u32(record[own + u32(SLOT)] * kv_heads + kv_head)) * u64(rows)
        depth = u32(u32(head_dim + _PADDING) & ~_PADDING)

        oldest = oldest_of(number, window)
        end = number if fused != u32(0) else u32(number + u32(1))
        sink_count, sink_start = sinks_run(oldest, end, evicted, sinks, rows)
        count, base, start, modulus = later_run(oldest, end, evicted, sinks, rows, ring)
        total = u32(sink_count + count)
        span = u32(u32(total + splits - u32(1)) // splits)
        span = span if span > u32(SPLIT_KEYS) else u32(SPLIT_KEYS)
        active = u32(u32(total + span - u32(1)) // span)
        active = active if active > u32(1) else u32(1)
        partial = u32(u32(row * kv_heads * group + first_head) * splits + split)
        if split >= active:
            if combine == u32(0) and thread < here:
                stats[(partial + thread * splits) * _STATS + _LARGEST] = _EMPTY
                stats[(partial + thread * splits) * _STATS + _TOTAL] = f32(0.0)
            return

        source = u32(row * q_stride + first_head * head_dim)
        put_queries(
            stage, q, numbered, q_weight, turns, source, here, head_dim, half, number, evicted, fused, norm, eps,
            offset, lane, warp,
        )  # fmt: skip
        owner = fused != u32(0) and split == u32(0)
        if owner:
            place = head_rows + u64(row_of(number, sinks, rows, ring))
            put_own(
                stage, k, v, k_weight, turns, keys, values, key_scales, value_scales,
                u32(row * kv_stride + kv_head * head_dim), place, tile == u32(0),
                head_dim, depth, half, number, norm, eps, offset, lane, warp,
            )  # fmt: skip
        cuda.syncthreads()

        first = u32(u32(lane & u32(lanes - 1)) * u32(8))
        factor = scale * rcp(softcap) if softcap != f32(0.0) else scale * _LOG2_E
        cap = softcap * _LOG2_E
        query = cuda.local.array(elements, f32)
        weighted = cuda.local.array(elements, f32)
        largest = cuda.local.array(heads, f32)
        mass = cuda.local.array(heads, f32)
        for i in range(u32(elements)):
            weighted[i] = f32(0.0)
        for h in range(u32(heads)):
            largest[h] = _EMPTY
            mass[h] = f32(0.0)
        begin = u32(split * span)
        stop = u32(begin + span) if u32(begin + span) < total else total
        run = u32(0) if sink_count != u32(0) else u32(1)
        while run < u32(2):
            late = run != u32(0)
            before, after = sink_count if late else u32(0), total if late else sink_count
            load_queries(query, stage, ahead if late and evicted != u32(0) else u32(0), first, factor)
            places = (
                head_rows,
                depth,
                first if first < depth else u32(0),
                base if late else u32(0),
                start if late else sink_start,
                modulus if late else rows,
            )
            run_begin = u32(begin - before) if begin > before else u32(0)
            run_stop = stop if stop < after else after
            run_stop = u32(run_stop - before) if run_stop > before else u32(0)
            absorb_run(
                keys, values, key_scales, value_scales, query, weighted, largest, mass, places, run_begin, run_stop,
                lane, warp, cap,
            )  # fmt: skip
            run = u32(run + u32(1))
        if owner and warp == u32(0):
            absorb_own(query, weighted, largest, mass, stage, own_key, own_value, first, lane, cap)
        merge_groups(weighted, largest, mass)
        leave(gather, weighted, largest, mass, first, lane, warp)
        cuda.syncthreads()
        target, counter = (
            u32(row * out_stride + first_head * head_dim),
            u32(row * kv_heads * tiles + u32(cuda.blockIdx.y)),
        )
        write(
            gather, flag, sums, stats, counters, out, target, partial, counter, here, head_dim, splits, active, combine,
            thread,
        )  # fmt: skip

    return attention_decode


KERNELS = {
    (storage, lanes, heads): _declare(storage, lanes, heads)
    for storage in STORAGES
    for lanes in DECODE_LANES
    for heads in DECODE_HEADS
}

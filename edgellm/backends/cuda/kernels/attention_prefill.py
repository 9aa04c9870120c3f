"""Attention of a prefill step on the tensor cores, tile by tile over the keys (FlashAttention-2, arXiv:2307.08691).

    out = softmax(softcap(q . k * scale)) v      over the rows that `visible.py` names

A block has one KV head and 64 rows of queries: `group` query heads of each of 64 // group tokens, so that a tile of
keys and values is loaded once for all the heads that share it. A warp has 16 of the rows; its queries stay in registers
as float16 (divided by a power of two a row, `rows.py`), its scores, weights and sums are float32, and the weights
become float16 for the product with the values. Keys and values have one buffer each in shared memory: the values of a
tile travel while its scores are computed, the keys of the next while its values are summed.

q is turned already: to the position in `q`, which meets the sinks, and to the number in `numbered`, which meets all
others and is read only once something was evicted (else they are the same). The step's own keys and values are in the
cache. Heads of 256 elements: a block has half of the value columns, and the scores are computed twice.

Grid: tiles of tokens, KV heads * value halves. The last tile sees most keys and begins first. Bytes: the cache's rows
once a tile of tokens, from the L2 cache but for the first; shared memory and registers allow two blocks a
multiprocessor. Below sm_80 the same with the two mma of Turing, and copies through registers.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.attention_tiles import (
    NOBODY,
    NUMBER,
    PADDING,
    SOURCE,
    TARGET,
    TileShape,
    add_values,
    begin_copy,
    find_scores,
    load_queries,
    load_tile,
    no_wait,
    store_rows,
    weigh_scores,
)
from edgellm.backends.cuda.kernels.cache_layout import DEPTH_ALIGNMENT
from edgellm.backends.cuda.kernels.declare import Kernel, kernel
from edgellm.backends.cuda.kernels.partials import EMPTY, PREFILL_ROWS, PREFILL_WIDTHS, VALUE_COLUMNS
from edgellm.backends.cuda.kernels.record import COUNT, END, EVICTED, SINKS, SLOT
from edgellm.backends.cuda.kernels.stored import STORAGES
from edgellm.backends.cuda.kernels.visible import later_run, oldest_of, sinks_run
from edgellm.backends.cuda.ptx import (
    cp_async_commit,
    cp_async_wait1,
    cuda,
    f32,
    griddep_launch,
    griddep_wait,
    rcp,
    u16,
    u32,
    u64,
)

_ALIGNED = u32(DEPTH_ALIGNMENT - 1)
_LOG2_E = f32(1.4426950408889634)
_EMPTY = f32(EMPTY)
_ROWS = u32(PREFILL_ROWS)
_TABLE = 3 * PREFILL_ROWS
_SOURCE, _TARGET, _NUMBER, _NOBODY = u32(SOURCE), u32(TARGET), u32(NUMBER), u32(NOBODY)
_PARAMETERS = (
    ("q", "f32*"),
    ("numbered", "f32*"),
    ("record", "u32*"),
    ("keys", ""),
    ("values", ""),
    ("key_scales", "f32*"),
    ("value_scales", "f32*"),
    ("out", "f32*"),
    ("q_stride", "u32"),
    ("out_stride", "u32"),
    ("kv_heads", "u32"),
    ("group", "u32"),
    ("head_dim", "u32"),
    ("rows", "u32"),
    ("ring", "u32"),
    ("window", "u32"),
    ("scale", "f32"),
    ("softcap", "f32"),
)


def _declare(storage: str, width: int, turing: bool) -> Kernel:
    keys_at_once = 64 if width <= 128 else 16 if turing else 32  # more would not leave all sums in registers
    shape = TileShape(width, min(width, VALUE_COLUMNS), keys_at_once)
    copied = storage == "float16" and not turing
    make = begin_copy if copied else lambda keys, elements, threads: load_tile(storage, keys, elements, threads)
    commit, wait = (cp_async_commit, cp_async_wait1) if copied else (no_wait, no_wait)
    fetch_keys = make(shape.keys, shape.width, shape.threads)
    fetch_values = make(shape.keys, shape.columns, shape.threads)
    load, find = load_queries(width), find_scores(shape, turing)
    weigh, add, store = weigh_scores(shape), add_values(shape, turing), store_rows(shape)
    key_halves, value_halves = shape.keys * (shape.width + PADDING), shape.keys * (shape.columns + PADDING)
    fragments, scores, sums = width // 4, shape.keys // 2, shape.columns // 2
    parts, tile_keys, columns = width // shape.columns, u32(shape.keys), shape.columns

    @kernel(
        f"attention_prefill_{storage}_d{width}" + ("_k8" if turing else ""),
        tuple((name, kind or STORAGES[storage].element) for name, kind in _PARAMETERS),
        threads=shape.threads,
        min_blocks=2,
        lowest=75 if turing else 80,
        highest=79 if turing else None,
        registers=255,
        expects=("HMMA", "LDSM") + (("LDGSTS.E.*128",) if copied else ()),
    )
    def attention_prefill(
        q, numbered, record, keys, values, key_scales, value_scales, out, q_stride, out_stride, kv_heads, group,
        head_dim, rows, ring, window, scale, softcap,
    ):  # fmt: skip
        """Tokens of record 0; q, numbered, out [tokens, stride] of whole heads; `softcap`, `window` 0: none."""
        griddep_wait()
        griddep_launch()
        key_tile = cuda.shared.array(key_halves, u16, alignment=16)
        value_tile = cuda.shared.array(value_halves, u16, alignment=16)
        table = cuda.shared.array(_TABLE, u32, alignment=16)
        thread, lane = u32(cuda.threadIdx.x), u32(u32(cuda.threadIdx.x) & u32(31))
        row, t = u32(u32(u32(thread >> u32(5)) * u32(16)) + u32(lane >> u32(2))), u32(lane & u32(3))
        kv_head = u32(u32(cuda.blockIdx.y) // u32(parts))
        column = u32(u32(u32(cuda.blockIdx.y) % u32(parts)) * u32(columns))
        count, tokens = record[u32(COUNT)], u32(_ROWS // group)
        tiles = u32(u32(count + tokens - u32(1)) // tokens)
        if u32(cuda.blockIdx.x) >= tiles:
            return
        token = u32(u32(tiles - u32(1) - u32(cuda.blockIdx.x)) * tokens)
        token_end = u32(token + tokens) if u32(token + tokens) < count else count
        number, evicted, sinks = record[u32(END)], record[u32(EVICTED)], record[u32(SINKS)]
        head_rows = u64(u32(record[u32(SLOT)] * kv_heads + kv_head)) * u64(rows)
        depth = u32(u32(head_dim + _ALIGNED) & ~_ALIGNED)

        if thread < _ROWS:
            own_token, head = u32(token + thread // group), u32(kv_head * group + thread % group)
            ok = own_token < token_end and thread < u32(tokens * group)
            table[_SOURCE + thread] = u32(own_token * q_stride + head * head_dim) if ok else _NOBODY
            table[_TARGET + thread] = u32(own_token * out_stride + head * head_dim) if ok else _NOBODY
            table[_NUMBER + thread] = u32(number + own_token)
        cuda.syncthreads()
        oldest, newest = oldest_of(u32(number + token), window), u32(number + token_end)
        young = oldest_of(u32(newest - u32(1)), window)
        sink_count, sink_start = sinks_run(oldest, newest, evicted, sinks, rows)
        later_count, base, start, modulus = later_run(oldest, newest, evicted, sinks, rows, ring)

        factor = scale * rcp(softcap) if softcap != f32(0.0) else scale * _LOG2_E
        cap = softcap * _LOG2_E
        query = cuda.local.array(fragments, u32)
        score = cuda.local.array(scores, f32)
        weighted = cuda.local.array(sums, f32)
        state = cuda.local.array(4, f32)
        for i in range(u32(sums)):
            weighted[i] = f32(0.0)
        state[0], state[1], state[2], state[3] = _EMPTY, _EMPTY, f32(0.0), f32(0.0)
        run = u32(0) if sink_count != u32(0) else u32(1)
        while run < u32(2):
            late = run != u32(0)
            length = later_count if late else sink_count
            key_zero = u32(newest - later_count) if late else oldest
            last = u32(key_zero + length)
            places = (
                head_rows,
                depth,
                base if late else u32(0),
                start if late else sink_start,
                modulus if late else rows,
                length,
            )
            source = numbered if late and evicted != u32(0) else q
            first_scale, second_scale = load(query, source, table, row, head_dim, t)
            first_scale, second_scale = first_scale * factor, second_scale * factor
            fetch_keys(key_tile, keys, key_scales, places, u32(0), u32(0), thread)
            commit()
            i = u32(0)
            while i < length:
                fetch_values(value_tile, values, value_scales, places, i, column, thread)
                commit()
                wait()
                cuda.syncthreads()
                find(score, query, key_tile, lane)
                cuda.syncthreads()
                key = u32(key_zero + i)
                i = u32(i + tile_keys)
                if i < length:
                    fetch_keys(key_tile, keys, key_scales, places, i, u32(0), thread)
                commit()
                edge = i > length or u32(key + tile_keys) > u32(number + token) or key < young
                weigh(score, weighted, state, first_scale, second_scale, cap, edge, key, last, table, row, window, t)
                wait()
                cuda.syncthreads()
                add(weighted, score, value_tile, lane)
                cuda.syncthreads()
            run = u32(run + u32(1))
        store(out, weighted, state, table, row, column, head_dim, t)

    return attention_prefill


KERNELS = {
    (storage, width, turing): _declare(storage, width, turing)
    for storage in STORAGES
    for width in PREFILL_WIDTHS
    for turing in (False, True)
}

"""Attention over the cache: out = softmax(softcap(q.k * scale) + mask) v, chunk by chunk with an online softmax.

A piece of work is one item of a plan and one KV head: its queries are the heads of that KV head of COUNT tokens, so a
key or value that is read serves them all and nothing is repeated. For each chunk the scores of all queries, their
weights, then the values. Few queries read the cache as it is stored; many have the chunk turned into words first, see
`attention_words`, or into float32 where the processor is no faster with words or the cache is float32.

    work, a thread's    [queries][depth] q | [queries][CHUNK] scores | [queries][depth] sums |
                        [queries] each of the softmax's statistics | scales of words, see `attention_words`
    partials            [number][H][depth + F32_LANES]: sums, then m and the sum of p; `op_attention_merge` joins them

All results depend on the plan alone, not on the number of threads.
"""

from __future__ import annotations

from edgellm.backends.cpu.attention_plan import (
    BEGIN,
    COUNT,
    END,
    FIRST_RUN,
    LAST_RUN,
    MERGE_PARTIAL,
    NUMBER,
    PARTIAL,
    PARTS,
    SHIFT,
    SLOT,
    TILE_QUERIES,
    TOKEN,
    TURN,
)
from edgellm.backends.cpu.attention_products import (
    scores_f16,
    scores_f32,
    scores_i8,
    values_f16,
    values_f32,
    values_i8,
    widen,
)
from edgellm.backends.cpu.attention_softmax import LOG2_E, LOWEST, weigh, weight_of
from edgellm.backends.cpu.attention_words import WORDS, meet_chunk, narrow_queries
from edgellm.backends.cpu.cache import CHUNK, CHUNK_BYTES, HEAD_BYTES, START
from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.rope import turn_head
from edgellm.backends.cpu.scratch import LINE_FLOATS
from edgellm.backends.cpu.work import share
from edgellm.simd import (
    F32_LANES,
    fma,
    load_f32,
    load_n_f32,
    reduce_max,
    splat_f32,
    store,
    store_n,
    zero_f32,
)

#: More queries than these have keys and values turned into words or floats once for all of them.
_DIRECT_QUERIES = 8
_SCALE_BYTES = 4


@kernel
def _load_queries(work, q, act, source, stride, count, groups, head_dim, depth, scale, cos, sin, table, half):
    """Queries of `count` tokens into work[q], times `scale`; turned on by the angles at `table` unless half is 0."""
    whole = head_dim // F32_LANES * F32_LANES
    rest = head_dim - whole
    factor = splat_f32(scale)
    for r in range(count * groups):
        at = q + r * depth
        head = source + r // groups * stride + r % groups * head_dim
        for i in range(0, whole, F32_LANES):
            store(work, at + i, load_f32(act, head + i) * factor)
        if rest > 0:  # with zeros up to a whole vector, which words are made of
            store(work, at + whole, load_n_f32(act, head + whole, rest) * factor)
        if half > 0:
            turn_head(work, at, work, at, cos, sin, table, half)


@kernel
def _put(out, at, work, a, count, divisor):
    """out[at] = work[a] / divisor, `count` elements."""
    whole = count // F32_LANES * F32_LANES
    below = splat_f32(divisor)
    for i in range(0, whole, F32_LANES):
        store(out, at + i, load_f32(work, a + i) / below)
    rest = count - whole
    store_n(out, at + whole, load_n_f32(work, a + whole, rest) / below, rest)


@kernel(inline="always")
def _score(work, q, s, queries, depth, head_dim, data, keys, storage, wide, wide_at, first, last):
    """Scores of a chunk's keys first .. last - 1."""
    if queries > _DIRECT_QUERIES:
        widen(wide, wide_at, data, keys, CHUNK * depth, storage)
        scores_f32(work, q, s, queries, depth, head_dim, wide, wide_at, first, last)
    elif storage == 0:
        scores_f32(work, q, s, queries, depth, head_dim, data, keys, first, last)
    elif storage == 1:
        scores_f16(work, q, s, queries, depth, head_dim, data, keys, first, last)
    else:
        scores_i8(work, q, s, queries, depth, head_dim, data, keys, first, last)


@kernel(inline="always")
def _sum_values(work, s, a, f, queries, depth, data, values, storage, wide, wide_at, first, last):
    """Fade the sums and add a chunk's values first .. last - 1 by their weights."""
    if queries > _DIRECT_QUERIES:
        widen(wide, wide_at, data, values, CHUNK * depth, storage)
        values_f32(work, s, a, f, queries, depth, wide, wide_at, first, last)
    elif storage == 0:
        values_f32(work, s, a, f, queries, depth, data, values, first, last)
    elif storage == 1:
        values_f16(work, s, a, f, queries, depth, data, values, first, last)
    else:
        values_i8(work, s, a, f, queries, depth, data, values, first, last)


@kernel(inline="always")
def _attend_run(
    work, q, capacity, queries, groups, depth, head_dim, cache, head, stride, storage, wide, wide_at, begin, end,
    oldest, window, cap
):  # fmt: skip
    """Let the queries of tokens numbered `oldest` on meet rows begin .. end - 1 of the head at byte `head`.

    `oldest` and with it the numbers are counted so that row r has number r.
    """
    s = q + capacity * depth
    a = s + capacity * CHUNK
    f = a + capacity * depth
    part_bytes = CHUNK * depth * (4 >> storage)
    for chunk in range(begin // CHUNK, (end + CHUNK - 1) // CHUNK):
        origin = chunk * CHUNK
        first, last = max(begin - origin, 0), min(end - origin, CHUNK)
        keys = head + chunk * stride
        values = keys + part_bytes
        key_scales = values + part_bytes
        value_scales = key_scales + CHUNK * _SCALE_BYTES
        newest = oldest - origin
        if WORDS and queries > _DIRECT_QUERIES and storage > 0:
            meet_chunk(
                work, s, a, f, capacity, queries, groups, depth, wide, wide_at, cache, keys, values, key_scales,
                value_scales, storage, newest, window, first, last, cap
            )  # fmt: skip
        else:
            _score(work, q, s, queries, depth, head_dim, cache, keys, storage, wide, wide_at, first, last)
            weigh(
                work, s, f, capacity, queries, groups, newest, window, first, last, cap, cache, key_scales,
                value_scales, storage
            )  # fmt: skip
            _sum_values(work, s, a, f, queries, depth, cache, values, storage, wide, wide_at, first, last)


@kernel(inline="always")
def _attend(
    act, q_offset, q_stride, cache, head, stride, storage, tokens, runs, items, item, kv_head, cos, sin, by_turn, half,
    scale, cap, window, groups, head_dim, depth, capacity, work, q, wide, wide_at
):  # fmt: skip
    """One item and KV head: sums, m and sums of weights are left in `work`."""
    token, count = items[item, TOKEN], items[item, COUNT]
    queries = count * groups
    a = q + capacity * (depth + CHUNK)
    f = a + capacity * depth
    for i in range(0, queries * depth, F32_LANES):
        store(work, a + i, zero_f32())
    for r in range(queries):
        work[f + r], work[f + capacity + r], work[f + 2 * capacity + r] = 0.0, LOWEST, 0.0
    oldest = tokens[token, NUMBER]
    loaded = -2
    for run in range(items[item, FIRST_RUN], items[item, LAST_RUN]):
        shift, turn = runs[run, SHIFT], runs[run, TURN]
        begin, end = runs[run, BEGIN], min(runs[run, END], oldest + count - shift)
        if window > 0:
            begin = max(begin, oldest - window + 1 - shift)
        if begin >= end:
            continue
        if turn != loaded:
            source = q_offset + token * q_stride + kv_head * groups * head_dim
            on = half if turn >= 0 else 0
            table = by_turn + turn * half
            _load_queries(work, q, act, source, q_stride, count, groups, head_dim, depth, scale, cos, sin, table, on)
            if WORDS and queries > _DIRECT_QUERIES and storage > 0:
                narrow_queries(wide, wide_at, work, q, f, capacity, queries, depth)
            loaded = turn
        _attend_run(
            work, q, capacity, queries, groups, depth, head_dim, cache, head, stride, storage, wide, wide_at, begin,
            end, oldest - shift, window, cap
        )  # fmt: skip


@kernel(shared=True)
def op_attention(
    act,
    out_offset,
    out_stride,
    q_offset,
    q_stride,
    partials,
    cache,
    layout,
    layer,
    storage,
    tokens,
    runs,
    items,
    tiles,
    cos,
    sin,
    by_turn,
    half,
    scale,
    cap,
    window,
    heads,
    kv_heads,
    head_dim,
    work,
    work_stride,
    wide,
    wide_stride,
    ith,
    nth,
):
    """Attention of a step's tokens in one layer, after `op_store_kv` and `op_rope` of the layer.

    Args:
        act: queries at `q_offset` + token * `q_stride`, turned to their positions; results at `out_offset` likewise,
            [heads, head_dim] a token.
        partials: float32, `partial_width(head_dim)` * heads * the plan's partials.
        cache, layout, storage: of a `CpuCache`; `layer` is the row of `layout`.
        tokens, runs, items, tiles: of a `StepPlan` and its kind.
        cos, sin, by_turn, half: of `RopeTables`.
        scale, cap: of the scores, no cap where it is 0. window: in tokens, 0 for none.
        work, wide: scratch, thread i's from i * `work_stride`, i * `wide_stride` on, see `attention_scratch`.
    """
    groups = heads // kv_heads
    scale, cap = scale * LOG2_E, cap * LOG2_E
    depth = (head_dim + F32_LANES - 1) // F32_LANES * F32_LANES
    capacity = (max(TILE_QUERIES, groups) + LINE_FLOATS - 1) // LINE_FLOATS * LINE_FLOATS
    q = ith * work_stride
    a = q + capacity * (depth + CHUNK)
    f = a + capacity * depth
    tiled, spans = tiles * kv_heads, items.shape[0] - tiles
    # Tiles are dealt out like cards: those of a causal triangle differ in length, neighbours least. Spans are cut into
    # ranges, a head's one after the other, so that a thread reads memory on and on.
    dealt = max(tiled - ith + nth - 1, 0) // nth
    first, last = share(ith, nth, spans * kv_heads)
    for unit in range(dealt + last - first):
        if unit < dealt:
            card = ith + unit * nth
            item, kv_head = card // kv_heads, card % kv_heads
        else:
            place = first + unit - dealt
            item, kv_head = tiles + place % spans, place // spans
        token, partial = items[item, TOKEN], items[item, PARTIAL]
        head = layout[layer, START] + (tokens[token, SLOT] * kv_heads + kv_head) * layout[layer, HEAD_BYTES]
        _attend(
            act, q_offset, q_stride, cache, head, layout[layer, CHUNK_BYTES], storage, tokens, runs, items, item,
            kv_head, cos, sin, by_turn, half, scale, cap, window, groups, head_dim, depth, capacity, work, q, wide,
            ith * wide_stride
        )  # fmt: skip
        for r in range(items[item, COUNT] * groups):
            t, h = r // groups, kv_head * groups + r % groups
            if partial < 0:
                target = out_offset + (token + t) * out_stride + h * head_dim
                _put(act, target, work, a + r * depth, head_dim, work[f + 2 * capacity + r])
            else:
                target = ((partial + t) * heads + h) * (depth + F32_LANES)
                _put(partials, target, work, a + r * depth, depth, 1.0)
                partials[target + depth] = work[f + capacity + r]
                partials[target + depth + 1] = work[f + 2 * capacity + r]


@kernel(shared=True)
def op_attention_merge(act, out_offset, out_stride, partials, merges, heads, head_dim, ith, nth):
    """Join the partial results of `op_attention`, after a barrier; nothing to do where `merges` is empty.

    A head of a token belongs to one thread; parts are added in their order.
    """
    depth = (head_dim + F32_LANES - 1) // F32_LANES * F32_LANES
    width = depth + F32_LANES
    for merge in range(merges.shape[0]):
        token, count, parts = merges[merge, TOKEN], merges[merge, COUNT], merges[merge, PARTS]
        first, last = share(ith, nth, count * heads)
        for unit in range(first, last):
            base = (merges[merge, MERGE_PARTIAL] * heads + unit) * width
            stride = count * heads * width
            largest = partials[base + depth]
            for part in range(1, parts):
                largest = max(largest, partials[base + part * stride + depth])
            base_score, total = splat_f32(largest if largest > LOWEST else 0.0), zero_f32()
            for part in range(parts):
                at = base + part * stride
                fade = weight_of(splat_f32(partials[at + depth]) - base_score)
                total = fma(fade, splat_f32(partials[at + depth + 1]), total)
                for i in range(0, depth, F32_LANES):
                    scaled = load_f32(partials, at + i) * fade
                    store(partials, base + i, scaled if part == 0 else load_f32(partials, base + i) + scaled)
            target = out_offset + (token + unit // heads) * out_stride + unit % heads * head_dim
            _put(act, target, partials, base, head_dim, reduce_max(total))

"""The step's keys and values enter the cache: turned by number, rounded to the storage, put into their rows.

int8 as `reference.cache.quantize_heads` has it, of the turned keys: scale = max |x| / 127 of a head and token, codes
rint(x / scale). NaN and infinity stay, in the element or in the scale, so that the logits will show them. A token's KV
head belongs to one thread.

A key is a lane of its chunk, so each of its elements touches a cache line of its own. Tokens of one head follow each
other, for their chunk's lines stay in the nearest cache then; and while one head is stored, the lines of the next are
asked for. Of Llama-2-7B on two threads a prompt of 64 tokens is stored in 22 ms so, and in 52 token by token; one token
in 0.9 ms where it took 1.5 (`edgellm bench --profile`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgellm.backends.cpu.attention_plan import FIRST_ROW, SLOT
from edgellm.backends.cpu.cache import CHUNK, CHUNK_BYTES, GROUP, HEAD_BYTES, START
from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.rope import turn_head
from edgellm.backends.cpu.work import share
from edgellm.simd import (
    F32_LANES,
    convert_i32,
    load_f32,
    load_n_f32,
    maximum,
    prefetch,
    reduce_add,
    reduce_max,
    splat_f32,
    store,
    store_f16,
    store_i32_to_i8,
    store_n,
    zero_f32,
)

_FLOAT32, _FLOAT16 = 0, 1
_SCALE_BYTES = 4


@kernel
def _scale(x, source, depth):
    """Of a head's codes."""
    most, poison = zero_f32(), zero_f32()
    for i in range(0, depth, F32_LANES):
        values = load_f32(x, source + i)
        most = maximum(most, abs(values))
        poison = poison + (values - values)  # 0, but NaN where a value is NaN or infinite: `maximum` may lose those
    scale = splat_f32(reduce_max(most)) / splat_f32(127.0) + splat_f32(reduce_add(poison))
    return reduce_max(scale)


@kernel
def _put(out, at, values, scale, storage):
    """Store a vector as elements from byte `at` on."""
    if storage == _FLOAT32:
        store(out, at, values)
    elif storage == _FLOAT16:
        store_f16(out, at, values)
    else:
        store_i32_to_i8(out, at, convert_i32(values / splat_f32(scale if scale > 0.0 else 1.0)))


def _make_lane(item_bytes: int) -> Callable[..., Any]:
    @kernel
    def put_lane(out, at, stage, source, row, depth):
        """Put `depth` elements side by side in `stage` into one lane of the chunk's keys at byte `at`."""
        lane = at + (row // GROUP * depth * GROUP + row % GROUP) * item_bytes
        for i in range(depth):
            for b in range(item_bytes):
                out[lane + i * GROUP * item_bytes + b] = stage[source + i * item_bytes + b]

    return put_lane


_put_lane_f32, _put_lane_f16, _put_lane_i8 = map(_make_lane, (4, 2, 1))


@kernel
def _put_key(out, at, x, source, row, depth, scale, storage, stage, bytes_at):
    """Put a head into one lane of the chunk's keys at byte `at`."""
    for i in range(0, depth, F32_LANES):
        _put(stage, bytes_at + i * (4 >> storage), load_f32(x, source + i), scale, storage)
    if storage == _FLOAT32:
        _put_lane_f32(out, at, stage, bytes_at, row, depth)
    elif storage == _FLOAT16:
        _put_lane_f16(out, at, stage, bytes_at, row, depth)
    else:
        _put_lane_i8(out, at, stage, bytes_at, row, depth)


@kernel
def _put_value(out, at, x, source, row, depth, scale, storage):
    """Put a head into one row of the chunk's values at byte `at`."""
    item_bytes, whole = 4 >> storage, depth // GROUP * GROUP
    for i in range(0, depth, F32_LANES):
        width = GROUP if i < whole else F32_LANES
        place = i // width * width * CHUNK + row * width + i % width
        _put(out, at + place * item_bytes, load_f32(x, source + i), scale, storage)


@kernel
def _place(layout, layer, tokens, kind, token, kv_head, kv_heads):
    """Byte of the chunk that a head of a token enters, and the row there."""
    number = tokens[token, FIRST_ROW + kind]
    at = layout[layer, START] + (tokens[token, SLOT] * kv_heads + kv_head) * layout[layer, HEAD_BYTES]
    return at + number // CHUNK * layout[layer, CHUNK_BYTES], number % CHUNK


@kernel
def _take(out, at, x, source, head_dim, depth):
    """Copy a head and pad it with zeros."""
    for i in range(depth - F32_LANES, depth, F32_LANES):
        store(out, at + i, zero_f32())
    whole = head_dim // F32_LANES * F32_LANES
    for i in range(0, whole, F32_LANES):
        store(out, at + i, load_f32(x, source + i))
    rest = head_dim - whole
    store_n(out, at + whole, load_n_f32(x, source + whole, rest), rest)


@kernel(shared=True)
def op_store_kv(
    cache,
    layout,
    layer,
    storage,
    tokens,
    kind,
    act,
    k_offset,
    k_stride,
    v_offset,
    v_stride,
    cos,
    sin,
    table,
    half,
    kv_heads,
    head_dim,
    floats,
    float_stride,
    stage,
    stage_stride,
    ith,
    nth,
):
    """Store the T rows of keys at act[k_offset + t * k_stride], not yet turned, and of values likewise.

    Args:
        cache, layout, storage: of a `CpuCache`; `layer` is the row of `layout`.
        tokens, kind: of a `StepPlan`, and the layer's kind.
        cos, sin, table, half: angles by number, row t from element `table` + t * half on; half 0 turns nothing.
        floats, stage: float32 and uint8 scratch; thread i has theirs from i * `float_stride`, i * `stage_stride` on,
            as much as `store_scratch` says.
    """
    count = tokens.shape[0]
    depth = (head_dim + F32_LANES - 1) // F32_LANES * F32_LANES
    item_bytes = 4 >> storage
    part_bytes = CHUNK * depth * item_bytes
    head, bytes_at = ith * float_stride, ith * stage_stride
    first, last = share(ith, nth, count * kv_heads)
    for unit in range(first, last):
        kv_head, token = unit // count, unit % count
        at, row = _place(layout, layer, tokens, kind, token, kv_head, kv_heads)
        if token == 0 and unit + count < last:
            following, _ = _place(layout, layer, tokens, kind, 0, kv_head + 1, kv_heads)
            lane = following + (row // GROUP * depth * GROUP + row % GROUP) * item_bytes
            for i in range(depth):
                prefetch(cache, lane + i * GROUP * item_bytes)
        _take(floats, head, act, k_offset + token * k_stride + kv_head * head_dim, head_dim, depth)
        turn_head(floats, head, floats, head, cos, sin, table + token * half, half)
        key_scale = _scale(floats, head, depth) if storage > _FLOAT16 else 1.0
        _put_key(cache, at, floats, head, row, depth, key_scale, storage, stage, bytes_at)
        _take(floats, head, act, v_offset + token * v_stride + kv_head * head_dim, head_dim, depth)
        value_scale = _scale(floats, head, depth) if storage > _FLOAT16 else 1.0
        _put_value(cache, at + part_bytes, floats, head, row, depth, value_scale, storage)
        if storage > _FLOAT16:
            scale_at = at + 2 * part_bytes + row * _SCALE_BYTES
            store_n(cache, scale_at, splat_f32(key_scale), 1)
            store_n(cache, scale_at + CHUNK * _SCALE_BYTES, splat_f32(value_scale), 1)

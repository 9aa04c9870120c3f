"""The step's keys and values enter the cache: turned by number, rounded to the storage, put into their rows.

int8 as `reference.cache.quantize_heads` has it, of the turned keys: scale = max |x| / 127 of a head and token, codes
rint(x / scale). NaN and infinity stay, in the element or in the scale, so that the logits will show them. A token's KV
head belongs to one thread.
"""

from __future__ import annotations

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
def _encode(out, at, x, source, depth, storage):
    """Write `depth` floats as stored elements from byte `at` on; the scale, 1 where there is none."""
    if storage == _FLOAT32:
        for i in range(0, depth, F32_LANES):
            store(out, at + 4 * i, load_f32(x, source + i))
        return 1.0
    if storage == _FLOAT16:
        for i in range(0, depth, F32_LANES):
            store_f16(out, at + 2 * i, load_f32(x, source + i))
        return 1.0
    most, poison = zero_f32(), zero_f32()
    for i in range(0, depth, F32_LANES):
        values = load_f32(x, source + i)
        most = maximum(most, abs(values))
        poison = poison + (values - values)  # 0, but NaN where a value is NaN or infinite: `maximum` may lose those
    scale = splat_f32(reduce_max(most)) / splat_f32(127.0) + splat_f32(reduce_add(poison))
    largest = reduce_max(scale)
    divisor = splat_f32(largest if largest > 0.0 else 1.0)
    for i in range(0, depth, F32_LANES):
        store_i32_to_i8(out, at + i, convert_i32(load_f32(x, source + i) / divisor))
    return largest


@kernel
def _put_key(out, at, stage, source, row, depth, item_bytes):
    """Put `depth` elements side by side in `stage` into one lane of the chunk's keys at byte `at`."""
    lane = at + (row // GROUP * depth * GROUP + row % GROUP) * item_bytes
    for i in range(depth):
        for b in range(item_bytes):
            out[lane + i * GROUP * item_bytes + b] = stage[source + i * item_bytes + b]


@kernel
def _put_value(out, at, stage, source, row, depth, item_bytes):
    """Put `depth` elements into one row of the chunk's values at byte `at`."""
    whole = depth // GROUP * GROUP
    i = 0
    while i < depth:
        width = GROUP if i < whole else F32_LANES
        place = at + (i * CHUNK + row * width) * item_bytes
        for b in range(width * item_bytes):
            out[place + b] = stage[source + i * item_bytes + b]
        i += width


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
        token, kv_head = unit // kv_heads, unit % kv_heads
        chunk, row = tokens[token, FIRST_ROW + kind] // CHUNK, tokens[token, FIRST_ROW + kind] % CHUNK
        at = layout[layer, START] + (tokens[token, SLOT] * kv_heads + kv_head) * layout[layer, HEAD_BYTES]
        at += chunk * layout[layer, CHUNK_BYTES]
        _take(floats, head, act, k_offset + token * k_stride + kv_head * head_dim, head_dim, depth)
        turn_head(floats, head, floats, head, cos, sin, table + token * half, half)
        key_scale = _encode(stage, bytes_at, floats, head, depth, storage)
        _put_key(cache, at, stage, bytes_at, row, depth, item_bytes)
        _take(floats, head, act, v_offset + token * v_stride + kv_head * head_dim, head_dim, depth)
        value_scale = _encode(stage, bytes_at, floats, head, depth, storage)
        _put_value(cache, at + part_bytes, stage, bytes_at, row, depth, item_bytes)
        if storage > _FLOAT16:
            scale_at = at + 2 * part_bytes + row * _SCALE_BYTES
            store_n(cache, scale_at, splat_f32(key_scale), 1)
            store_n(cache, scale_at + CHUNK * _SCALE_BYTES, splat_f32(value_scale), 1)

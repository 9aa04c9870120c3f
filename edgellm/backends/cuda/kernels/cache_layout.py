"""How keys and values lie in device memory: what the runtime allocates and the kernels index.

A layer has its keys and its values in one array each,

    keys, values   [slots][num_key_value_heads][rows][depth]     float16 (u16) or int8
    scales         [slots][num_key_value_heads][rows]            float32, of keys and of values; int8 alone

where `rows` and the row of a token are `CacheGeometry`'s and `depth` is head_dim, padded with zeros to whole
`DEPTH_ALIGNMENT` elements: a row is read in pieces of 8 elements (128 bits of float16, 64 of int8) and in tiles of 16
by the tensor cores, whatever head_dim is. Kernels that store a row write its padding too, and nobody reads a row that
was never stored, so memory need not be cleared.

Keys are stored *turned*, by their token's number. Numbers never change, so no key is ever turned or rounded again, and
two tokens behind the sinks keep their angle whatever is evicted between sinks and them. Sinks, though, come nearer by
`evicted`: for them, and for them alone, the query stands at its position, number - evicted, in place of its number.

int8 is `reference.cache.quantize_heads` of the turned key and of the value: scale = max |x| / 127 of a head and token,
codes rint(x / scale).
"""

from __future__ import annotations

#: Elements that `depth` is a multiple of.
DEPTH_ALIGNMENT = 16
#: The largest head that the attention kernels take.
MAX_HEAD_DIM = 256
#: Storage in the names of kernels: bytes of an element.
STORAGE_BYTES = {"float16": 2, "int8": 1}


def depth_of(head_dim: int) -> int:
    """Elements of a stored row."""
    return -(-head_dim // DEPTH_ALIGNMENT) * DEPTH_ALIGNMENT


def layer_nbytes(dtype: str, slots: int, kv_heads: int, rows: int, head_dim: int) -> tuple[int, int]:
    """Bytes of one layer's keys, which its values need too, and of the scales of either (0 but for int8)."""
    heads = slots * kv_heads * rows
    return heads * depth_of(head_dim) * STORAGE_BYTES[dtype], 4 * heads if dtype == "int8" else 0

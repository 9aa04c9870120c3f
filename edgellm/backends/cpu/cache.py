"""Keys and values on the CPU: one block of bytes, laid out for attention.

Keys are stored *turned*, by their token's number. Numbers never change, so no key is ever turned or rounded again, and
two tokens behind the sinks keep their angle whatever is evicted between sinks and them: with q at number n and k at
number m, RoPE makes q.k depend on n - m alone. Sinks, though, come nearer by `evicted`: for them, and for them alone,
the query stands at its position, number - evicted, in place of its number. `attention_plan` has who meets which query.

A layer, slot and KV head has its rows in chunks of `CHUNK`, and a chunk all that attention reads of it, in the order in
which it is read, so that memory is read front to back (measured, one core: 23 GB/s against 13 from four streams). D is
head_dim padded to whole vectors with zeros, L the lanes of a vector, G = `GROUP` the lanes of a register tile:

    keys      [CHUNK / G][D][G]      element d of G neighbouring rows side by side: a lane is a key, and its score needs
                                     no sum over lanes
    values    [D / G][CHUNK][G]      G neighbouring elements, row by row; [CHUNK][L] for each vector that is left over
    scales    float32 [2][CHUNK]     of keys and of values, where storage is int8
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgellm.backends.cpu.arena import aligned_zeros, populate
from edgellm.backends.cpu.layout import ALIGNMENT, round_up
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.errors import ModelError, OutOfMemoryError
from edgellm.simd import F32_LANES, TARGET

#: Codes of storage for kernels; an element has 4 >> code bytes.
STORAGE = {"float32": 0, "float16": 1, "int8": 2}
#: Rows that attention takes at once.
CHUNK = 64
#: Vectors of a register tile: 4 queries by 4 vectors are 16 sums of 32 registers, 4 by 2 are 8 of 16.
BLOCKS = 4 if TARGET.isa == "avx512vnni" or TARGET.arch == "aarch64" else 2
GROUP = BLOCKS * F32_LANES
#: Columns of `CpuCache.layout`: byte offset of the first slot's first head, bytes of a head, bytes of a chunk.
START, HEAD_BYTES, CHUNK_BYTES = range(3)


class CpuCache:
    """See `interface.Cache`.

    Attributes:
        geometry: of the cache.
        num_slots: slots.
        storage: code of the element type.
        data: uint8 [nbytes], on large pages; what kernels read and write.
        layout: int64 [layers, 3], see `START` ...; head h of slot s begins (s * KvH + h) heads further on.
        nbytes: bytes held.

    Raises:
        OutOfMemoryError: it cannot be allocated.
    """

    def __init__(self, geometry: CacheGeometry, num_slots: int) -> None:
        self.geometry = geometry
        self.num_slots = num_slots
        self.storage = STORAGE[geometry.dtype]
        layout, self.nbytes = _lay_out(geometry, num_slots)
        try:
            self.data = aligned_zeros(self.nbytes, np.uint8)
        except (MemoryError, OverflowError, ValueError):
            raise OutOfMemoryError(f"no memory for a cache of {self.nbytes:,} bytes", hint="Lower context.") from None
        self.layout = np.array(layout, np.int64)
        self._layers = [self._chunks(layer) for layer in range(len(geometry.windows))]

    def ready_first_rows(self) -> None:
        """Have the system clear the pages that the first tokens of the first slot will touch: all at once and in one
        thread, which takes what they would wait for (1B, 2048 tokens: 40 to 70 ms) while others read a tokenizer."""
        heads = self.geometry.num_key_value_heads
        begins = [start + head * size for start, size, _ in self.layout.tolist() for head in range(heads)]
        populate(self.data, begins, int(self.layout[0, CHUNK_BYTES]))

    def copy_slot(self, source: SlotState, target: int) -> None:
        """Copy what slot `source.slot` holds into slot `target`."""
        used = -(-source.newest // CHUNK)
        for chunks in self._layers:
            chunks[target, :, :used] = chunks[source.slot, :, :used]

    def export_slot(self, state: SlotState) -> dict[str, np.ndarray]:
        """What the slot keeps, by name `layers.N.keys` ..., in token order; of sliding layers what is still there.

        Names, shapes and dtypes are the reference cache's, but keys are turned by their tokens' numbers: only a cache
        of this backend can take them over, whatever instruction set it runs on.
        """
        exported = {}
        for layer in range(len(self._layers)):
            rows = self._held_rows(layer, state)
            for name in self._names:
                exported[f"layers.{layer}.{name}"] = self._gather(layer, name, state.slot, rows)
        return exported

    def import_slot(self, state: SlotState, tensors: Mapping[str, np.ndarray]) -> None:
        """Fill slot `state.slot` with what `export_slot` gave for the same state. Raises `ModelError` at a mismatch."""
        for layer in range(len(self._layers)):
            rows = self._held_rows(layer, state)
            for name in self._names:
                self._scatter(layer, name, state.slot, rows, tensors.get(f"layers.{layer}.{name}"))

    def _held_rows(self, layer: int, state: SlotState) -> np.ndarray:
        numbers = state.numbers(oldest=self.geometry.oldest_held(layer, state))
        return self.geometry.row_of(layer, state, numbers)

    @property
    def _names(self) -> tuple[str, ...]:
        return ("keys", "values") + (("keys_scales", "values_scales") if self.geometry.dtype == "int8" else ())

    def _chunks(self, layer: int) -> np.ndarray:
        """A layer's bytes, uint8 [slots, KvH, chunks, bytes of a chunk]."""
        start, head_bytes, chunk_bytes = self.layout[layer].tolist()
        heads = (self.num_slots, self.geometry.num_key_value_heads)
        layer_bytes = heads[0] * heads[1] * head_bytes
        return self.data[start : start + layer_bytes].reshape(*heads, head_bytes // chunk_bytes, chunk_bytes)

    def _gather(self, layer: int, name: str, slot: int, rows: np.ndarray) -> np.ndarray:
        """Rows of a slot in the reference's shape: [tokens, KvH, Hd], scales [tokens, KvH]."""
        parts = [view[_index(name, rows)] for view in self._views(layer, name, slot)]
        parts = [part.reshape(len(rows), self.geometry.num_key_value_heads, -1) for part in parts]
        joined = np.concatenate(parts, axis=-1)
        return (
            joined[..., 0] if name.endswith("scales") else np.ascontiguousarray(joined[..., : self.geometry.head_dim])
        )

    def _scatter(self, layer: int, name: str, slot: int, rows: np.ndarray, stored: np.ndarray | None) -> None:
        kv_heads, head_dim = self.geometry.num_key_value_heads, self.geometry.head_dim
        key, scales = f"layers.{layer}.{name}", name.endswith("scales")
        shape = (len(rows), kv_heads) if scales else (len(rows), kv_heads, head_dim)
        dtype = np.dtype(np.float32 if scales else self.geometry.dtype)
        if stored is None or stored.dtype != dtype or stored.shape != shape:
            found = "nothing" if stored is None else f"{stored.dtype} {list(stored.shape)}"
            raise ModelError("not this cache's", key=key, found=found, allowed=f"{dtype} {list(shape)}")
        if dtype.kind == "f" and not np.isfinite(stored).all():
            raise ModelError("holds NaN or infinity", key=key)
        depth = 1 if scales else round_up(head_dim, F32_LANES)
        whole = np.zeros((len(rows), kv_heads, depth), dtype)
        whole[..., : 1 if scales else head_dim] = stored[..., None] if scales else stored
        first = 0
        for view in self._views(layer, name, slot):
            index = _index(name, rows)
            shape = view[index].shape
            count = int(np.prod(shape[2:], dtype=np.int64))
            view[index] = whole[..., first : first + count].reshape(shape)
            first += count

    def _views(self, layer: int, name: str, slot: int) -> list[np.ndarray]:
        """What a slot has of `name`, as arrays that `_index` finds rows in; tokens, then KvH come out first."""
        depth, chunks = round_up(self.geometry.head_dim, F32_LANES), self._layers[layer][slot]
        dtype = np.dtype(self.geometry.dtype)
        part_bytes = CHUNK * depth * dtype.itemsize
        if name == "keys":
            return [chunks[..., :part_bytes].view(dtype).reshape(*chunks.shape[:2], CHUNK // GROUP, depth, GROUP)]
        if name == "values":
            values = chunks[..., part_bytes : 2 * part_bytes].view(dtype)
            groups, left = depth // GROUP, depth % GROUP // F32_LANES
            whole = values[..., : groups * CHUNK * GROUP].reshape(*chunks.shape[:2], groups, CHUNK, GROUP)
            rest = values[..., groups * CHUNK * GROUP :].reshape(*chunks.shape[:2], left, CHUNK, F32_LANES)
            return [whole, rest]
        scales = chunks[..., 2 * part_bytes :].view(np.float32).reshape(*chunks.shape[:2], 2, CHUNK)
        return [scales[:, :, 0 if name == "keys_scales" else 1]]


def _index(name: str, rows: np.ndarray) -> tuple[Any, ...]:
    chunk, row = rows // CHUNK, rows % CHUNK
    if name == "keys":
        return (slice(None), chunk, row // GROUP, slice(None), row % GROUP)
    return (slice(None), chunk, slice(None), row) if name == "values" else (slice(None), chunk, None, row)


def cache_nbytes(geometry: CacheGeometry, num_slots: int) -> int:
    """Bytes that a `CpuCache` takes, padding included."""
    return _lay_out(geometry, num_slots)[1]


def _lay_out(geometry: CacheGeometry, num_slots: int) -> tuple[list[tuple[int, ...]], int]:
    layout = []
    item_bytes = 4 >> STORAGE[geometry.dtype]
    chunk_bytes = 2 * CHUNK * round_up(geometry.head_dim, F32_LANES) * item_bytes
    chunk_bytes += 2 * CHUNK * 4 if geometry.dtype == "int8" else 0
    end = 0
    for layer in range(len(geometry.windows)):
        head_bytes = round_up(geometry.rows(layer), CHUNK) // CHUNK * chunk_bytes
        layout.append((end, head_bytes, chunk_bytes))  # START, HEAD_BYTES, CHUNK_BYTES
        end += round_up(num_slots * geometry.num_key_value_heads * head_bytes, ALIGNMENT)
    return layout, end

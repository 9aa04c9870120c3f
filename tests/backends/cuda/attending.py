"""Cases for kernels of attention and the cache: a layer, slots that have lived, and what the reference says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.backends.cuda.kernels import record
from edgellm.backends.cuda.kernels.cache_layout import depth_of
from edgellm.backends.cuda.kernels.turns import turn_words
from edgellm.backends.reference import ops
from edgellm.backends.reference.attention import attend
from edgellm.backends.reference.cache import quantize_heads
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.model.program import Op
from edgellm.model.rope import Rope


@dataclass
class Layer:
    """One attention layer: its heads, its cache, and what is asked of it."""

    heads: int
    kv_heads: int
    head_dim: int
    dtype: str = "float16"
    window: int | None = None
    context: int = 64
    chunk: int = 8
    softcap: float | None = None
    rotary_dim: int | None = None
    scale: float = 0.2

    @property
    def geometry(self) -> CacheGeometry:
        return CacheGeometry(self.context, (self.window,), self.kv_heads, self.head_dim, self.chunk, self.dtype)

    @property
    def rope(self) -> Rope | None:
        turned = self.head_dim if self.rotary_dim is None else self.rotary_dim
        return Rope(10000.0, turned) if turned else None

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def op(self) -> Op:
        given = {"scale": self.scale, "window": self.window, "softcap": self.softcap, "rope": self.rope}
        return Op("attention", ("q",), ("a",), layer=0, attributes=given)

    def turned(self, x: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """x [T, H, Hd] turned to `numbers`."""
        return x if self.rope is None else ops.rope(x, *self.rope.cos_sin(numbers))

    def arguments(self) -> dict[str, Any]:
        """Arguments that every attention kernel takes of a layer."""
        return {
            "kv_heads": self.kv_heads,
            "group": self.group,
            "head_dim": self.head_dim,
            "rows": self.geometry.rows(0),
            "ring": int(self.geometry.ring_window(0) is not None),
            "window": self.window or 0,
            "scale": self.scale,
            "softcap": self.softcap or 0.0,
        }

    def turns(self) -> dict[str, Any]:
        """Arguments of kernels that turn."""
        if self.rope is None:
            return {"turns": None, "half": 0}
        return {"turns": turn_words(self.rope.inv_freq()), "half": self.rope.rotary_dim // 2}


class DeviceCache:
    """A layer's cache as `cache_layout.py` has it, full of NaN (int8: of NaN scales) where nothing was stored."""

    def __init__(self, layer: Layer, slots: int) -> None:
        self.layer = layer
        heads = (slots, layer.kv_heads, layer.geometry.rows(0))
        shape = (*heads, depth_of(layer.head_dim))
        if layer.dtype == "int8":
            self.keys, self.values = np.full(shape, 99, np.int8), np.full(shape, 99, np.int8)
            self.key_scales, self.value_scales = np.full(heads, np.nan, np.float32), np.full(heads, np.nan, np.float32)
        else:
            self.keys, self.values = np.full(shape, 0x7E00, np.uint16), np.full(shape, 0x7E00, np.uint16)
            self.key_scales = self.value_scales = None

    def arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("keys", "values", "key_scales", "value_scales")}

    def write(self, state: SlotState, keys: np.ndarray, values: np.ndarray) -> None:
        """Store tokens behind what `state` keeps, keys [T, KvH, Hd] not yet turned."""
        numbers = np.arange(state.end, state.end + len(keys))
        rows = self.layer.geometry.row_of(0, state, numbers)
        self._put(self.keys, self.key_scales, self.layer.turned(keys, numbers), state.slot, rows)
        self._put(self.values, self.value_scales, values, state.slot, rows)

    def _put(self, target: np.ndarray, scales: np.ndarray | None, x: np.ndarray, slot: int, rows: np.ndarray) -> None:
        padded = np.zeros((*x.shape[:2], target.shape[-1]), np.float32)
        padded[..., : x.shape[-1]] = x
        if scales is None:
            codes = padded.astype(np.float16).view(np.uint16)
        else:
            codes, found = quantize_heads(padded)
            scales[slot][:, rows] = found.T
        target[slot][:, rows] = codes.transpose(1, 0, 2)

    def read(self, layer: int, state: SlotState, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is stored of these tokens, keys turned back, as a `ReferenceCache` gives it: float32 [N, KvH, Hd]."""
        rows = self.layer.geometry.row_of(layer, state, numbers)
        keys = self._get(self.keys, self.key_scales, state.slot, rows)
        if self.layer.rope is not None:
            angles = numbers[:, None] * self.layer.rope.inv_freq()
            keys = ops.rope(keys, np.cos(angles), -np.sin(angles))
        return keys.astype(np.float32), self._get(self.values, self.value_scales, state.slot, rows).astype(np.float32)

    def _get(self, source: np.ndarray, scales: np.ndarray | None, slot: int, rows: np.ndarray) -> np.ndarray:
        stored = source[slot][:, rows]
        if scales is None:
            x = stored.view(np.float16).astype(np.float64)
        else:
            x = stored.astype(np.float64) * scales[slot][:, rows][..., None]
        return x.transpose(1, 0, 2)[..., : self.layer.head_dim]

    def attended(self, state: SlotState, q: np.ndarray) -> np.ndarray:
        """The reference's attention of q [T, H, Hd], not yet turned, over what is stored, the T new tokens included."""
        positions = np.arange(state.length, state.length + len(q))
        return attend(self.layer.turned(q, positions), self, state, self.layer.op)


def live(cache: DeviceCache, slot: int, life: list[tuple[str, int]], rng: np.random.Generator) -> SlotState:
    """The state of a slot after `life`: ("see", tokens), ("sinks", count) and ("evict", count), one after the other."""
    state = SlotState(slot)
    for what, count in life:
        if what == "sinks":
            state = SlotState(slot, sinks=count, end=state.end)
        elif what == "evict":
            state = state.evict(count)
        else:
            for done in range(0, count, cache.layer.chunk):
                now = min(cache.layer.chunk, count - done)
                cache.write(state, *(random_heads(rng, now, cache.layer.kv_heads, cache.layer) for _ in range(2)))
                state = state.extended(now)
    return state


def random_heads(rng: np.random.Generator, tokens: int, heads: int, layer: Layer) -> np.ndarray:
    """float32 [tokens, heads, head_dim]."""
    return rng.standard_normal((tokens, heads, layer.head_dim)).astype(np.float32)


def records(states: list[SlotState | None], counts: list[int] | None = None) -> np.ndarray:
    """Step records, u32 [S * RECORD_WORDS]; None: a record of nobody."""
    words = np.zeros((len(states), record.RECORD_WORDS), np.uint32)
    for index, state in enumerate(states):
        if state is not None:
            row = words[index]
            row[record.SLOT], row[record.END], row[record.EVICTED] = state.slot, state.end, state.evicted
            row[record.SINKS], row[record.COUNT] = state.sinks, counts[index] if counts else 1
    return words.ravel()

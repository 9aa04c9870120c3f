"""Attention and cache kernels against the reference: the arguments of a launch from a geometry and slot states."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgellm.backends.cuda.kernels import record
from edgellm.backends.cuda.kernels.cache_layout import depth_of
from edgellm.backends.cuda.kernels.turns import turn_words
from edgellm.backends.reference.attention import attend
from edgellm.backends.reference.cache import ReferenceCache
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.model.program import Op
from edgellm.model.rope import Rope


@dataclass
class Case:
    """One layer, its geometry, and what attention is asked for."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    context: int = 64
    chunk: int = 8
    dtype: str = "float16"
    softcap: float | None = None
    rotary_dim: int | None = None
    scale: float = 0.3

    @property
    def geometry(self) -> CacheGeometry:
        return CacheGeometry(self.context, (self.window,), self.kv_heads, self.head_dim, self.chunk, self.dtype)

    @property
    def rope(self) -> Rope | None:
        turned = self.head_dim if self.rotary_dim is None else self.rotary_dim
        return Rope(10000.0, turned) if turned else None

    @property
    def turns(self) -> np.ndarray:
        return turn_words(self.rope.inv_freq()) if self.rope else np.zeros(1, np.uint64)

    @property
    def half(self) -> int:
        return self.rope.rotary_dim // 2 if self.rope else 0

    @property
    def rows(self) -> int:
        return self.geometry.rows(0)

    @property
    def ring(self) -> int:
        return int(self.geometry.ring_window(0) is not None)

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def op(self) -> Op:
        given = {"scale": self.scale, "window": self.window, "softcap": self.softcap, "rope": self.rope}
        return Op("attention", ("q",), ("a",), layer=0, attributes=given)


class DeviceCache:
    """One layer's cache as `cache_layout.py` has it, as numpy arrays, poisoned where nothing was stored."""

    def __init__(self, case: Case, slots: int) -> None:
        self.case, self.slots = case, slots
        heads, depth = (slots, case.kv_heads, case.rows), depth_of(case.head_dim)
        int8 = case.dtype == "int8"
        empty = np.full((*heads, depth), 99, np.int8) if int8 else np.full((*heads, depth), 0x7E00, np.uint16)
        self.keys, self.values = empty.copy(), empty.copy()
        scales = heads if int8 else (1,)
        self.key_scales, self.value_scales = (np.full(scales, np.nan, np.float32) for _ in range(2))

    def fill(self, cache: ReferenceCache, state: SlotState) -> None:
        """Store what the reference cache keeps of a slot, its keys turned by their numbers."""
        case = self.case
        numbers = state.numbers(oldest=case.geometry.oldest_held(0, state))
        rows = case.geometry.row_of(0, state, numbers)
        keys, values = cache.read(0, state, numbers)
        if case.rope is not None:
            from edgellm.backends.reference.ops import rope

            keys = rope(keys, *case.rope.cos_sin(numbers))
        self._put(self.keys, self.key_scales, keys, state.slot, rows)
        self._put(self.values, self.value_scales, values, state.slot, rows)

    def _put(self, target: np.ndarray, scales: np.ndarray, heads: np.ndarray, slot: int, rows: np.ndarray) -> None:
        padded = np.zeros((*heads.shape[:2], target.shape[-1]), np.float32)
        padded[..., : heads.shape[-1]] = heads
        if self.case.dtype == "int8":
            largest = np.abs(padded).max(axis=-1) / np.float32(127)
            scales[slot][:, rows] = largest.T
            codes = np.rint(padded / np.where(largest > 0, largest, 1)[..., None]).astype(np.int8)
        else:
            codes = padded.astype(np.float16).view(np.uint16)
        target[slot][:, rows] = codes.transpose(1, 0, 2)


def play(case: Case, slots: int, lives: list[list[tuple[str, int]]], seed: int = 0) -> tuple[ReferenceCache, list]:
    """A reference cache in which slot s has lived through `lives[s]`: ("see", n) and ("evict", n); and the states."""
    rng = np.random.default_rng(seed)
    cache = ReferenceCache(case.geometry, slots)
    states = []
    for slot, life in enumerate(lives):
        state = SlotState(slot)
        for what, count in life:
            if what == "sinks":
                state = SlotState(slot, sinks=count, end=state.end)
            elif what == "evict":
                state = state.evict(count)
            else:
                for _ in range(count):
                    shape = (1, case.kv_heads, case.head_dim)
                    cache.write(0, state, *(rng.standard_normal(shape).astype(np.float32) for _ in range(2)))
                    state = state.extended(1)
        states.append(state)
    return cache, states


def records(states: list[SlotState], counts: list[int]) -> np.ndarray:
    """Step records, u32 [S * RECORD_WORDS]."""
    words = np.zeros((len(states), record.RECORD_WORDS), np.uint32)
    for row, state, count in zip(words, states, counts, strict=True):
        row[record.SLOT], row[record.END], row[record.EVICTED] = state.slot, state.end, state.evicted
        row[record.SINKS], row[record.COUNT] = state.sinks, count
    return words.ravel()


def expected(case: Case, cache: ReferenceCache, state: SlotState, q: np.ndarray, k: np.ndarray, v: np.ndarray):
    """The reference's attention of new tokens q [T, H, Hd] with k, v [T, KvH, Hd], after storing them."""
    from edgellm.backends.reference.ops import rope

    cache.write(0, state, k, v)
    positions = np.arange(state.length, state.length + len(q))
    turned = rope(q, *case.rope.cos_sin(positions)) if case.rope else q
    return attend(turned, cache, state, case.op)

"""Slots: where the keys and values of a sequence lie, and what a sequence still remembers.

A sequence owns one slot, a fixed number of rows a layer, allocated once. Tokens are counted from the first one the slot
ever saw: token number `n` is the n-th (from 0), evicted ones included. The first `sinks` tokens stay (StreamingLLM,
arXiv:2309.17453); the others leave oldest first, so that what is kept is always

    tokens  0 .. sinks-1      and      sinks+evicted .. end-1
    at positions 0 .. sinks-1          sinks .. length-1            length = end - evicted

An eviction moves nothing: it raises `evicted`, and every kept token behind the sinks gets a lower position.

A layer with full attention holds `context` rows, sinks first, then a ring:

    row(n) = n                                       n < sinks
             sinks + (n - sinks) % (context - sinks) otherwise

A sliding-window layer whose window is shorter than the context holds `window - 1 + chunk` rows (a step may bring
`chunk` tokens at once and the first of them still sees `window - 1` older ones), row(n) = n % rows. Its mask counts
tokens: token m is visible to n iff n - window < m <= n and m is kept; evicted tokens still count as distance, since
what the ring has overwritten cannot come back nearer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

CACHE_DTYPES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class SlotState:
    """What slot number `slot` holds.

    Attributes:
        slot: index of the slot in the cache.
        sinks: tokens at the start that are never evicted.
        evicted: tokens that have left, those numbered sinks .. sinks + evicted - 1.
        end: tokens seen, evicted ones included.
        forgotten: tokens beyond `end` that were seen and rewound; what their rows overwrote stays lost.
    """

    slot: int
    sinks: int = 0
    evicted: int = 0
    end: int = 0
    forgotten: int = 0

    @property
    def length(self) -> int:
        """Tokens kept; the next token's position."""
        return self.end - self.evicted

    def extended(self, count: int) -> SlotState:
        """After `count` more tokens."""
        # every token of every answer: `replace` takes as long as a tenth of what Python does for one
        return SlotState(self.slot, self.sinks, self.evicted, self.end + count, max(self.forgotten - count, 0))

    def evict(self, count: int) -> SlotState:
        """After the oldest `count` tokens behind the sinks have left."""
        if not 0 <= count <= max(self.length - self.sinks, 0):
            raise ValueError(f"cannot evict {count} of {self.length - self.sinks} tokens")
        return replace(self, evicted=self.evicted + count)

    def rewound(self, length: int) -> SlotState:
        """After the newest tokens have been forgotten so that `length` are kept."""
        if not self.kept_prefix <= length <= self.length:
            raise ValueError(f"cannot keep {length} of {self.length} tokens")
        end = length + self.evicted
        return replace(self, end=end, forgotten=self.newest - end)

    @property
    def newest(self) -> int:
        """One more than the highest number that ever took a row."""
        return self.end + self.forgotten

    @property
    def kept_prefix(self) -> int:
        """The least length that `rewound` can reach: an evicted gap cannot be undone, the sinks before it can stay."""
        return self.sinks if self.evicted else 0

    def numbers(self, end: int | None = None, oldest: int = 0) -> np.ndarray:
        """Numbers of the kept tokens from number `oldest` up to `end` (default: the end), ascending, int64."""
        end = self.end if end is None else end
        head = np.arange(oldest, min(self.sinks, end) if self.evicted else 0, dtype=np.int64)
        first = self.sinks + self.evicted if self.evicted else 0
        return np.concatenate([head, np.arange(max(oldest, first), end, dtype=np.int64)])

    def positions(self, numbers: np.ndarray) -> np.ndarray:
        """Present positions of the kept tokens `numbers`, int64."""
        return np.where(numbers < self.sinks, numbers, numbers - self.evicted)


@dataclass(frozen=True)
class CacheGeometry:
    """How many rows each layer of a slot has, and which row a token takes.

    Attributes:
        context: tokens a full-attention layer can hold.
        windows: a layer, the sliding window in tokens (the query included), or None for full attention.
        num_key_value_heads, head_dim: of every layer.
        chunk: the most tokens of one sequence in one step.
        dtype: "float32", "float16" or "int8" (with one float32 scale a head and token).
    """

    context: int
    windows: tuple[int | None, ...]
    num_key_value_heads: int
    head_dim: int
    chunk: int
    dtype: str = "float16"

    def ring_window(self, layer: int) -> int | None:
        """The window of a layer that keeps only its window; None for a layer that holds the whole context."""
        window = self.windows[layer]
        return window if window is not None and window - 1 + self.chunk < self.context else None

    def rows(self, layer: int) -> int:
        """Rows of one slot in `layer`."""
        window = self.ring_window(layer)
        return self.context if window is None else window - 1 + self.chunk

    def row_of(self, layer: int, state: SlotState, numbers: np.ndarray) -> np.ndarray:
        """Rows of the tokens `numbers`, int64."""
        if self.ring_window(layer) is not None:
            return numbers % self.rows(layer)
        ring = max(self.context - state.sinks, 1)
        return np.where(numbers < state.sinks, numbers, state.sinks + (numbers - state.sinks) % ring)

    def row(self, layer: int, state: SlotState, number: int) -> int:
        """Row of one token, in plain numbers."""
        if self.ring_window(layer) is not None:
            return number % self.rows(layer)
        if number < state.sinks:
            return number
        return state.sinks + (number - state.sinks) % max(self.context - state.sinks, 1)

    @property
    def unbounded(self) -> bool:
        """True where every layer keeps only its window: nothing ever has to be evicted."""
        return all(self.ring_window(layer) is not None for layer in range(len(self.windows)))

    def room(self, state: SlotState) -> int | None:
        """Tokens that still fit before something must be evicted; None where that never happens."""
        return None if self.unbounded else self.context - state.length

    def can_rewind(self, state: SlotState, length: int) -> bool:
        """Whether every layer still holds what a sequence cut back to `length` tokens would see."""
        if not state.kept_prefix <= length <= state.length:
            return False
        # a ring of window - 1 + chunk rows still has the window of every end from newest - chunk on
        return self.rings_whole(state) or state.newest - (length + state.evicted) <= self.chunk

    def rings_whole(self, state: SlotState) -> bool:
        """Whether no sliding layer has overwritten anything yet."""
        layers = range(len(self.windows))
        return all(self.ring_window(layer) is None or state.newest <= self.rows(layer) for layer in layers)

    def oldest_held(self, layer: int, state: SlotState) -> int:
        """The least token number whose row in `layer` has not been overwritten."""
        return 0 if self.ring_window(layer) is None else max(state.newest - self.rows(layer), 0)

    @property
    def slot_nbytes(self) -> int:
        """Bytes of one slot, keys and values of all layers."""
        row = 2 * self.num_key_value_heads * (self.head_dim * CACHE_DTYPES[self.dtype] + 4 * (self.dtype == "int8"))
        return row * sum(self.rows(layer) for layer in range(len(self.windows)))

"""What the walker is told of a step, in arrays that stay where they are: its call is laid out once, and a decode step
writes a few numbers. An array is longer than what it holds; `counts` and `bounds` say how much that is."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellm.backends.cpu.attention_plan import (
    END,
    FIRST_ROW,
    NUMBER,
    ROPE_BLOCK,
    KindPlan,
    RopeTables,
    plan_step,
    rope_block,
    rope_tables,
    span_of,
    windows_of,
)
from edgellm.backends.cpu.layout import round_up
from edgellm.backends.interface import Batch
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.model.rope import Rope

_INT64, _INT32, _FLOAT32 = np.int64, np.int32, np.float32
#: In the order of the walker's `step`: counts, token_ids, logits_rows, tokens, runs, items, merges, bounds, cos, sin,
#: ropes. What each is of, and its columns, 0 for an array of one dimension. Behind them come the cosines and sines of
#: the `ROPE_BLOCK` positions among which a lone sequence is, and what was chosen for it.
_KINDS = (
    (_INT64, 0),
    (_INT32, 0),
    (_INT32, 0),
    (_INT64, FIRST_ROW),
    (_INT64, 4),
    (_INT64, 5),
    (_INT64, 4),
    (_INT64, 7),
    (_FLOAT32, 0),
    (_FLOAT32, 0),
    (_INT64, 4),
)
_TOKEN_IDS, _TOKENS, _RUNS, _COS, _SIN = 1, 3, 4, 8, 9
_CHOSEN = 2  # of what comes behind them
#: Steps at most that the walker takes by itself.
MOST_AHEAD = 16


class StepArrays:
    """The arrays of one runner.

    Args:
        ropes: the rotations that its rows name.
        groups: query heads of a KV head.

    Attributes:
        partials: partial results of attention that the step needs.
    """

    def __init__(self, ropes: tuple[Rope, ...], groups: int) -> None:
        self.partials = 0
        self._ropes, self._groups = ropes, groups
        self._arrays = tuple(np.zeros((1, columns) if columns else 1, dtype) for dtype, columns in _KINDS)
        self._width = sum(rope.rotary_dim // 2 for rope in ropes)
        self._block = -1
        self._ahead = (*np.zeros((2, ROPE_BLOCK * self._width), _FLOAT32), np.zeros(1 + MOST_AHEAD, _INT64))
        self._whole = self._arrays + self._ahead
        #: Where the next token of a lone sequence finds all but a few numbers as they are, see `_goes_on`.
        self._geometry: CacheGeometry | None = None
        self._slot = self._end = self._most = self._last_run = 0
        self._wanted = (0, 0)

    def fill(self, geometry: CacheGeometry, batch: Batch) -> tuple[np.ndarray, ...]:
        """Put a step into the arrays; the same tuple as before unless one of them had to be made anew."""
        state, lone = batch.states[0], len(batch.token_ids) == 1 == len(batch.logits_rows)
        wanted = (int(batch.logits_use), next((c.vocab_size for c in batch.choices if c is not None), 0))
        if lone and geometry is self._geometry and self._goes_on(state, wanted):
            self._advance(int(batch.token_ids[0]))
            return self._whole
        arrays = self._plan(geometry, batch, wanted)
        if arrays is not self._arrays:
            self._arrays, self._whole = arrays, arrays + self._ahead
        steady = lone and not state.evicted and windows_of(geometry) == (None,)
        self._geometry = geometry if steady else None
        self._slot, self._end, self._wanted = state.slot, state.end + 1, wanted
        self._most = round_up(self._end, span_of(geometry, 0))
        return self._whole

    def may_go_on(self, wanted: int) -> int:
        """How many of `wanted` steps behind the one that is filled in the walker can take by itself, see `go_on`."""
        if self._geometry is None:
            return 0
        self._hold_block(self._end // ROPE_BLOCK)
        return min(wanted, MOST_AHEAD, self._most - self._end, ROPE_BLOCK - self._end % ROPE_BLOCK)

    def gone_on(self, steps: int) -> np.ndarray:
        """The walker has taken so many steps, fewer where a token is -1. Returns the tokens chosen, int64."""
        chosen = self._ahead[_CHOSEN]
        tokens = next((n for n in range(steps) if chosen[n] < 0), steps) + 1
        self._end += tokens - 1
        return chosen[:tokens].copy()

    def _goes_on(self, state: SlotState, wanted: tuple[int, int]) -> bool:
        """Whether this is the step before with a token more, in the piece of the context that its last run ends in."""
        here = (state.slot, state.end, state.evicted, wanted)
        return here == (self._slot, self._end, 0, self._wanted) and state.end < self._most

    def _advance(self, token_id: int) -> None:
        """What `_plan` does for that token: a decode step waits for it, and for NumPy at every small array. The twin of
        `go_on` of the walker."""
        arrays, number = self._arrays, self._end
        arrays[_TOKEN_IDS][0] = token_id
        arrays[_TOKENS][0, NUMBER] = arrays[_TOKENS][0, FIRST_ROW] = number
        arrays[_RUNS][self._last_run, END] = self._end = number + 1
        block, row = divmod(number, ROPE_BLOCK)
        self._hold_block(block)
        width = self._width
        arrays[_COS][:width] = self._ahead[0][row * width : (row + 1) * width]
        arrays[_SIN][:width] = self._ahead[1][row * width : (row + 1) * width]

    def _hold_block(self, block: int) -> None:
        if block == self._block:
            return
        self._block, begin = block, 0
        held = [array.reshape(ROPE_BLOCK, self._width) for array in self._ahead[:2]]
        for rope in self._ropes:
            end = begin + rope.rotary_dim // 2
            for array, values in zip(held, rope_block(rope, block), strict=True):
                array[:, begin:end] = values
            begin = end

    def _plan(self, geometry: CacheGeometry, batch: Batch, wanted: tuple[int, int]) -> tuple[np.ndarray, ...]:
        plan = plan_step(geometry, batch, self._groups)
        self.partials, self._last_run = plan.partials, len(plan.kinds[0].runs) - 1
        bounds, joined = _joined_kinds(plan.kinds)
        tables = _joined_tables([rope_tables(rope, plan) for rope in self._ropes])
        counts = (len(batch.token_ids), len(batch.logits_rows), *wanted)
        values = (counts, batch.token_ids, batch.logits_rows, plan.tokens, *joined, bounds, *tables)
        arrays = self._arrays
        if plan.tokens.shape[1] != arrays[_TOKENS].shape[1] or any(
            len(value) > len(array) for value, array in zip(values, arrays, strict=True)
        ):
            arrays = tuple(map(_grown, arrays, values))
        for array, value in zip(arrays, values, strict=True):
            array[: len(value)] = value
        return arrays


def _grown(array: np.ndarray, value: Any) -> np.ndarray:
    """An array that `value` fits into: `array` itself, or one of at least twice its length."""
    columns = value.shape[1] if isinstance(value, np.ndarray) and value.ndim == 2 else array.shape[-1]
    if len(value) <= len(array) and (array.ndim == 1 or columns == array.shape[1]):
        return array
    length = max(len(value), 2 * len(array))
    return np.zeros(length if array.ndim == 1 else (length, columns), array.dtype)


def _joined_kinds(kinds: tuple[KindPlan, ...]) -> tuple[list[tuple[int, ...]], list[np.ndarray]]:
    """The rows of `bounds` (`walker.py`), and all kinds' runs, items and merges one behind the other."""
    # A decode step waits for this: one kind, as nearly all models have, is spared the joining.
    parts = [[kind.runs for kind in kinds], [kind.items for kind in kinds], [kind.merges for kind in kinds]]
    rows = []
    begins = [0, 0, 0]
    for kind in kinds:
        ends = [begin + len(part) for begin, part in zip(begins, (kind.runs, kind.items, kind.merges), strict=True)]
        rows.append((begins[0], ends[0], begins[1], ends[1], begins[2], ends[2], kind.tiles))
        begins = ends
    return rows, [part[0] if len(part) == 1 else np.concatenate(part) for part in parts]


def _joined_tables(tables: list[RopeTables]) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
    """All rotations' tables one behind the other, and the rows of `ropes`."""
    if not tables:
        nothing = np.zeros(1, np.float32)
        return nothing, nothing, [(0, 0, 0, 0)]
    rows, begin = [], 0
    for table in tables:
        rows.append((table.half, begin + table.by_position, begin + table.by_number, begin + table.by_turn))
        begin += len(table.cos)
    if len(tables) == 1:
        return tables[0].cos, tables[0].sin, rows
    cos, sin = (np.concatenate([getattr(table, name) for table in tables]) for name in ("cos", "sin"))
    return cos, sin, rows

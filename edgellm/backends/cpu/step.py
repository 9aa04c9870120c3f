"""What the walker is told of a step, in arrays that stay where they are: its call is laid out once, and a decode step
writes a few numbers. An array is longer than what it holds; `counts` and `bounds` say how much that is."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellm.backends.cpu.attention_plan import FIRST_ROW, KindPlan, RopeTables, StepPlan
from edgellm.backends.interface import Batch

_INT64, _INT32, _FLOAT32 = np.int64, np.int32, np.float32
#: In the order of the walker's `step`: counts, token_ids, logits_rows, tokens, runs, items, merges, bounds, cos, sin,
#: ropes. What each is of, and its columns, 0 for an array of one dimension.
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
_TOKENS = 3


class StepArrays:
    """The arrays of one runner."""

    def __init__(self) -> None:
        self._arrays = tuple(np.zeros((1, columns) if columns else 1, dtype) for dtype, columns in _KINDS)

    def fill(self, batch: Batch, plan: StepPlan, tables: list[RopeTables]) -> tuple[np.ndarray, ...]:
        """Put a step into the arrays; the same tuple as before unless one of them had to be made anew."""
        bounds, joined = _joined_kinds(plan.kinds)
        counts = (len(batch.token_ids), len(batch.logits_rows), batch.exact)
        values = (counts, batch.token_ids, batch.logits_rows, plan.tokens, *joined, bounds, *_joined_tables(tables))
        arrays = self._arrays
        if plan.tokens.shape[1] != arrays[_TOKENS].shape[1] or any(
            len(value) > len(array) for value, array in zip(values, arrays, strict=True)
        ):
            arrays = self._arrays = tuple(map(_grown, arrays, values))
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

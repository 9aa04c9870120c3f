"""Where a step's time goes: thread 0's clock behind every row of the op table, and what each row reads of memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from edgellm.backends.cpu.cache import CHUNK, CHUNK_BYTES, CpuCache
from edgellm.backends.cpu.layout import LinearKind, LinearLayout
from edgellm.backends.cpu.optable import TOKENS, Kind
from edgellm.backends.cpu.slices import refined_bytes
from edgellm.backends.interface import Batch
from edgellm.errors import BackendUnavailable

LINEAR_KINDS = {
    Kind.LINEAR_F16: LinearKind.F16,
    Kind.LINEAR_INT8: LinearKind.INT8,
    Kind.LINEAR_INT4: LinearKind.INT4,
    Kind.LOGITS_F16: LinearKind.F16,
    Kind.LOGITS_INT8: LinearKind.INT8,
    Kind.LOGITS_INT4: LinearKind.INT4,
    Kind.LOGITS_INT2: LinearKind.INT2,
    Kind.REFINE_INT4: LinearKind.INT4,
    Kind.REFINE_INT2: LinearKind.INT2,
}
#: Rows that add slices of logits.
_REFINES = (Kind.REFINE_INT4, Kind.REFINE_INT2)


@dataclass(frozen=True)
class RowTime:
    """What a row of the op table took.

    Attributes:
        program_op: index in the program of the op that it belongs to.
        kind: of the row, the name of a `Kind` in small letters; of the first row "call+" it, for its time holds how
            long Python takes to call the walker and the threads to wake.
        layer: decoder layer, None outside of the layers.
        seconds: from the end of the row before to its own, waiting for the other threads included.
        nbytes: weights and cache that it reads; activations stay in the processor's caches.
    """

    program_op: int
    kind: str
    layer: int | None
    seconds: float
    nbytes: int


@dataclass(frozen=True)
class Work:
    """What a decode step of one token does, apart from attention.

    Attributes:
        weight_bytes: packed weights that it reads; of an embedding that is not the lm_head, nothing.
        integer_operations: products and sums of the linears of the layers whose weights are integers, with activations
            of one plane.
    """

    weight_bytes: int
    integer_operations: int


class Stopwatch:
    """Starts when made; `seconds` tells how long each row of a walk took that ended just before.

    Raises:
        BackendUnavailable: this processor has no clock that kernels can read.
    """

    def __init__(self, rows: int) -> None:
        from edgellm.backends.cpu.clock import now  # a profile alone compiles it

        if not now():
            raise BackendUnavailable("no profile: this processor has no clock that kernels can read")
        self.times = np.zeros(rows, np.int64)
        self._now = now
        self._seconds, self._ticks = time.perf_counter(), now()

    def seconds(self) -> np.ndarray:
        """float64 [rows]. The walk itself tells how long a tick is."""
        passed = self._now() - self._ticks
        tick = (time.perf_counter() - self._seconds) / max(passed, 1)
        return np.diff(self.times, prepend=self._ticks) * tick


def row_times(table: np.ndarray, seconds: np.ndarray, cache: CpuCache, batch: Batch) -> list[RowTime]:
    """The rows of an op table with the time that each took."""
    times = []
    for number, row in enumerate(table):
        kind = Kind(int(row["kind"])).name.lower()
        times.append(
            RowTime(
                program_op=int(row["program_op"]),
                kind=kind if number else f"call+{kind}",
                layer=int(row["layer"]) if row["layer"] >= 0 else None,
                seconds=float(seconds[number]),
                nbytes=row_bytes(row, cache, batch),
            )
        )
    return times


def row_bytes(row: np.void, cache: CpuCache, batch: Batch) -> int:
    """Bytes of weights and cache that a row of the op table reads in a step."""
    kind = Kind(int(row["kind"]))
    if kind in LINEAR_KINDS:
        used = row["over"] == TOKENS or len(batch.logits_rows) > 0
        layout = layout_of_row(row)
        if kind in _REFINES and batch.logits_use < row["code"] and len(batch.logits_rows) == 1:
            return refined_bytes(layout)
        return layout.nbytes if used else 0
    if kind != Kind.ATTEND:
        return 0
    geometry = cache.geometry
    layer, window = int(row["layer"]), int(row["window"])
    token_bytes = int(cache.layout[layer][CHUNK_BYTES]) // CHUNK * geometry.num_key_value_heads
    total = 0
    for state, count in zip(batch.states, np.diff(batch.seq_starts), strict=True):
        length = state.length + int(count)
        total += min(length, window - 1 + int(count)) if window else length
    return total * token_bytes


def layout_of_row(row: np.void) -> LinearLayout:
    """The layout of a linear row's weight."""
    kind = LINEAR_KINDS[Kind(int(row["kind"]))]
    return LinearLayout(kind, int(row["rows"]), int(row["inputs"]), int(row["group"]), bool(row["own_zeros"]))


def work_of(table: np.ndarray) -> Work:
    """What a decode step over an op table does."""
    weights = integers = 0
    for row in table:
        if Kind(int(row["kind"])) not in LINEAR_KINDS:
            continue
        layout = layout_of_row(row)
        weights += refined_bytes(layout) if row["kind"] in _REFINES else layout.nbytes
        if layout.kind != LinearKind.F16 and row["over"] == TOKENS:
            integers += 2 * layout.rows * layout.inputs
    return Work(weights, integers)

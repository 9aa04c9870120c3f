"""Two runs of one program, buffer by buffer.

A backend's fused program has fewer ops and buffers than the plain one; both write the same values into those they
share. So each run becomes a list of events (buffer, value) in order of writing, and an event of one is compared with
the same-numbered event of the same buffer of the other.

The error of a value is |a - b| / (|a| + rms of a's row): single values near zero have no relative precision to lose,
and the few that trained models make thousands of times larger than their neighbours have more. The error of a buffer is
that of its worst value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgellm.backends.interface import Batch
from edgellm.backends.slots import CacheGeometry, SlotState

if TYPE_CHECKING:
    from edgellm.backends.interface import Runner
    from edgellm.model.program import Op, Program

_SEED = 20240229


@dataclass(frozen=True)
class Event:
    """What an op wrote: its description, the buffer, and the value, float32 [T, width]."""

    op: str
    buffer: str
    value: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """The largest error and where it was, and a description of the first buffer beyond the bound."""

    worst: float
    worst_where: str
    first_beyond: str | None


def prompt(vocab_size: int, length: int) -> list[int]:
    """Token ids that are the same on every machine."""
    return np.random.default_rng(_SEED).integers(0, vocab_size, length).tolist()


def run_traced(runner: Runner, tokens: list[int], dtype: str = "float32") -> list[Event]:
    """All that is written while `tokens` are prefilled in one step, and the logits of every token."""
    events: list[Event] = []

    def trace(index: int, buffers: Mapping[str, np.ndarray]) -> None:
        op = runner.program.ops[index]
        events.extend(Event(_describe(op), name, np.array(buffers[name], np.float32)) for name in op.outputs)

    cache = runner.new_cache(geometry(runner.program, len(tokens), dtype), 1)
    runner.run(cache, Batch.of([(SlotState(0), tokens, "all")]), trace)
    return events


def logits_in_chunks(runner: Runner, tokens: list[int], chunk: int, dtype: str = "float32") -> np.ndarray:
    """Logits float32 [T, V] of `tokens`, given `chunk` at a time."""
    cache = runner.new_cache(geometry(runner.program, len(tokens), dtype), 1)
    state, rows = SlotState(0), []
    for first in range(0, len(tokens), chunk):
        part = tokens[first : first + chunk]
        rows.append(np.array(runner.run(cache, Batch.of([(state, part, "all")])), np.float32))
        state = state.extended(len(part))
    return np.concatenate(rows)


def geometry(program: Program, tokens: int, dtype: str = "float32") -> CacheGeometry:
    """A cache that holds `tokens` and takes them in one step."""
    config = program.config
    windows = tuple(config.layer_windows)
    heads = config.num_key_value_heads
    return CacheGeometry(tokens, windows, heads, config.head_dim, chunk=tokens, dtype=dtype)


def compare(expected: list[Event], found: list[Event], bound: float) -> Comparison:
    """Buffer by buffer, in the order in which `found` wrote them."""
    matched = _aligned(expected, found)
    errors = [(error_of(a.value, b.value), f"{b.op} -> {b.buffer}", a.value, b.value) for a, b in matched]
    worst = max(errors, key=lambda entry: entry[0])
    first = next((entry for entry in errors if not entry[0] <= bound), None)
    described = f"{first[1]}, error {first[0]:.1e}, {_row_of(first[2], first[3])}" if first else None
    return Comparison(worst[0], worst[1], described)


def compare_logits(expected: np.ndarray, found: np.ndarray, bound: float) -> Comparison:
    """Two runs that must give the same logits."""
    error = error_of(expected, found)
    beyond = None if error <= bound else f"logits, error {error:.1e}, {_row_of(expected, found)}"
    return Comparison(error, "logits", beyond)


def error_of(expected: np.ndarray, found: np.ndarray) -> float:
    """The worst of |a - b| / (|a| + rms of a's row) of two arrays [..., width]; infinite where a value of either is no
    number, or something stands where all of a row is zero."""
    if expected.shape != found.shape or not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return float("inf")
    difference = np.abs(expected - found)
    scale = np.sqrt(np.mean(np.square(expected, dtype=np.float64), axis=-1, keepdims=True)) + np.abs(expected)
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where(difference == 0, 0.0, difference / scale)
    return float(np.max(errors, initial=0.0))


def _aligned(expected: list[Event], found: list[Event]) -> list[tuple[Event, Event]]:
    """Pairs of events of the same op kind's result: the k-th write of a buffer by the ops both programs have."""
    from collections import defaultdict, deque

    waiting: dict[str, deque[Event]] = defaultdict(deque)
    for event in expected:
        waiting[event.buffer].append(event)
    return [(waiting[event.buffer].popleft(), event) for event in found if waiting[event.buffer]]


def _row_of(expected: np.ndarray, found: np.ndarray) -> str:
    if expected.shape != found.shape:
        return f"shape {list(found.shape)} where {list(expected.shape)} is right"
    with np.errstate(invalid="ignore"):
        difference = np.nan_to_num(np.abs(expected - found), nan=np.inf)
    row, column = np.unravel_index(int(np.argmax(difference)), difference.shape)
    return f"token {row}, element {column}: {found[row, column]:.6g} where {expected[row, column]:.6g} is right"


def _describe(op: Op) -> str:
    where = "" if op.layer is None else f"layer {op.layer} "
    return f"{where}{op.kind}" + (f" {', '.join(w.rsplit('.', 1)[-1] for w in op.weights)}" if op.weights else "")

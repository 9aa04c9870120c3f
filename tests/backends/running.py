"""Runs a model on a backend straight through the narrow waist, without an engine: what the backend tests share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgellm.backends import find
from edgellm.backends.interface import Batch, Runner, Trace
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.model import fuse, open_model


def load(folder: Path, *, fused: bool = True, backend: str = "reference") -> Runner:
    """The model in `folder`, loaded."""
    with open_model(folder) as model:
        program = model.weights.program
        return find(backend).load(fuse(program) if fused else program, model.weights)


def geometry(runner: Runner, context: int, chunk: int, dtype: str = "float32") -> CacheGeometry:
    """The cache geometry of a runner's model."""
    config = runner.program.config
    return CacheGeometry(context, config.layer_windows, config.num_key_value_heads, config.head_dim, chunk, dtype)


def prefill(
    runner: Runner, cache, state: SlotState, ids: Sequence[int], trace: Trace | None = None
) -> tuple[np.ndarray, SlotState]:
    """Logits [len(ids), V] of `ids` behind what `state` keeps, a chunk of the cache at a time, and the new state."""
    chunk = cache.geometry.chunk
    logits = []
    for start in range(0, len(ids), chunk):
        part = [int(token) for token in ids[start : start + chunk]]
        logits.append(runner.run(cache, Batch.of([(state, part, "all")]), trace))
        state = state.extended(len(part))
    return np.concatenate(logits), state


def logits_of(runner: Runner, ids: Sequence[int], *, chunk: int = 128, dtype: str = "float32") -> np.ndarray:
    """Logits [len(ids), V] of a fresh sequence."""
    cache = runner.new_cache(geometry(runner, len(ids), chunk, dtype), 1)
    return prefill(runner, cache, SlotState(0), ids)[0]


def greedy(runner: Runner, ids: Sequence[int], count: int, *, chunk: int = 128, dtype: str = "float32") -> list[int]:
    """`count` ids of greedy continuation."""
    cache = runner.new_cache(geometry(runner, len(ids) + count, chunk, dtype), 1)
    logits, state = prefill(runner, cache, SlotState(0), ids)
    made: list[int] = []
    while True:
        made.append(int(logits[-1].argmax()))
        if len(made) == count:
            return made
        logits, state = prefill(runner, cache, state, made[-1:])


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the largest expected magnitude."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())

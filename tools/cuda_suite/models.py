"""Models of the suite: random weights at real shapes, written once; runners without an engine; greedy steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.backends.cuda.backend import CudaBackend
from edgellm.backends.cuda.runner import CudaRunner
from edgellm.backends.interface import Batch, Choice, Runner
from edgellm.backends.reference.backend import ReferenceBackend
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.model import fuse, open_model
from tools.cuda_suite.settings import Say, Settings
from tools.make_synthetic import Storage, make_synthetic, model_config

_SEED = 20240229


def synthetic(settings: Settings, model: str, say: Say, layers: int | None = None) -> Path:
    """The folder of a synthetic 4-bit model in groups of 128, made where it is not there yet."""
    name = Path(model).stem + (f"-{layers}" if layers else "")
    folder = settings.folder / "models" / name
    if not (folder / "config.json").is_file():
        begin = time.perf_counter()
        make_synthetic(model_config(model), folder, Storage(), layers=layers)
        say(f"wrote {name} in {time.perf_counter() - begin:.1f} s")
    return folder


def load(folder: Path, device: str, **options: str) -> CudaRunner:
    """The model in `folder` on the GPU."""
    with open_model(folder) as model:
        return CudaBackend().load(fuse(model.weights.program), model.weights, device=device, **options)


def load_reference(folder: Path) -> Runner:
    """The model in `folder` in NumPy."""
    with open_model(folder) as model:
        return ReferenceBackend().load(fuse(model.weights.program), model.weights)


def cache_of(runner: Runner, context: int, slots: int = 1, dtype: str = "float16") -> Any:
    """A cache of the backend's largest chunk."""
    config = runner.program.config
    chunk = min(CudaBackend.prefill_chunk, context)
    sizes = (config.num_key_value_heads, config.head_dim)
    return runner.new_cache(CacheGeometry(context, config.layer_windows, *sizes, chunk, dtype), slots)


def prompt(runner: Runner, length: int) -> list[int]:
    """Token ids that are the same on every machine."""
    return np.random.default_rng(_SEED).integers(0, runner.program.config.vocab_size, length).tolist()


def feed(runner: Runner, cache: Any, state: SlotState, ids: Sequence[int], wanted: str) -> tuple[np.ndarray, SlotState]:
    """Logits of `ids` behind `state`, chunk by chunk, those of the last chunk; and the state after."""
    chunk, logits = cache.geometry.chunk, np.zeros((0, 0), np.float32)
    for first in range(0, len(ids), chunk):
        part = [int(token) for token in ids[first : first + chunk]]
        last = first + chunk >= len(ids)
        logits = runner.run(cache, Batch.of([(state, part, wanted if last else "none")]))
        state = state.extended(len(part))
    return logits, state


def greedy(runner: Runner, ids: Sequence[int], count: int, dtype: str = "float16") -> list[int]:
    """`count` ids of greedy continuation."""
    cache = cache_of(runner, len(ids) + count, dtype=dtype)
    logits, state = feed(runner, cache, SlotState(0), ids, "last")
    made = [int(logits[-1].argmax())]
    while len(made) < count:
        logits, state = feed(runner, cache, state, made[-1:], "last")
        made.append(int(logits[-1].argmax()))
    return made


def greedy_on_device(runner: CudaRunner, ids: Sequence[int], count: int) -> list[int]:
    """As `greedy`, each token chosen on the device; the prompt is one step."""
    cache, choice = cache_of(runner, len(ids) + count), Choice(runner.program.config.vocab_size)
    state, part = SlotState(0), [int(token) for token in ids]
    made: list[int] = []
    while len(made) < count:
        batch = replace(Batch.of([(state, part, "last")]), choices=(choice,))
        made += runner.choose(cache, batch).tokens.tolist()
        state, part = state.extended(len(part)), made[-1:]
    return made


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the largest expected magnitude; infinite where something is not finite."""
    error = np.abs(found - expected).max() / np.abs(expected).max()
    return float(error) if np.isfinite(error) else float("inf")

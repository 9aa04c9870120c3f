"""From arguments to a geometry and a memory plan, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgellm.api.embedded import embedded_path
from edgellm.api.splitting import plan_split
from edgellm.backends import find, options_for
from edgellm.backends.slots import CACHE_DTYPES, CacheGeometry
from edgellm.errors import UsageError
from edgellm.model import ModelConfig, OpenedModel, build_program, fuse, open_model

if TYPE_CHECKING:
    from edgellm.backends.interface import Backend, MemoryPlan
    from edgellm.model import Program

DEFAULT_CONTEXT = 4096
DEFAULT_CACHE_DTYPE = "float16"
MAX_SLOTS = 256
MAX_THREADS = 1024


@dataclass(frozen=True)
class Plan:
    """What is going to be loaded, and where.

    Attributes:
        score_dtype: of the cache for scores and logits.
        options: of the backend's `load`, those that were chosen.
        device: as it was asked for.
    """

    opened: OpenedModel
    backend: Backend
    program: Program
    geometry: CacheGeometry
    slots: int
    score_dtype: str
    memory: MemoryPlan
    options: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None


def open_path(path: str | os.PathLike[str] | None) -> OpenedModel:
    """The opened model; None is the embedded one. Raises `InputError`, `ModelError`, `UsageError`."""
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise UsageError("not a path", key="path", found=type(path).__name__)
    return open_model(embedded_path() if path is None else path)


def make_plan(
    opened: OpenedModel,
    *,
    backend: str | None = None,
    device: str | None = None,
    context: int | None = None,
    cache_dtype: str | None = None,
    slots: int = 1,
    gpu_layers: int | str | None = None,
    options: Mapping[str, str | None] | None = None,
) -> Plan:
    """The plan of an opened model.

    Args:
        gpu_layers: how many decoder layers, the first ones, go on the GPU, the rest on the CPU; "auto": as many as its
            memory holds. None: all on one backend.
        options: of backends that offer them, such as `lm_head`; None leaves one at its default.

    Raises:
        UsageError: an argument outside its range, or an option that the backend does not have.
        BackendUnavailable: no such backend, or it cannot run here.
    """
    config = opened.config
    context = choose_context(config, context)
    if cache_dtype is not None and cache_dtype not in CACHE_DTYPES:
        raise UsageError(
            "no such kind of cache", key="cache_dtype", found=repr(cache_dtype), allowed=", ".join(CACHE_DTYPES)
        )
    slots = check_count("slots", slots, MAX_SLOTS)
    backend, device = _text("backend", backend), _text("device", device)
    asked = {key: _text(key, value) for key, value in (options or {}).items()}
    program = fuse(build_program(config))

    def plan_for(chosen: Backend) -> Plan:
        geometry = CacheGeometry(
            context=context,
            windows=config.layer_windows,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            chunk=min(chosen.prefill_chunk, context),
            dtype=_choose_dtype(chosen, cache_dtype),
        )
        given = options_for(chosen, asked)
        needed = chosen.plan_bytes(program, opened.weights, geometry, slots, device=device, **given)
        score_dtype = cache_dtype or chosen.cache_dtypes[0]
        return Plan(opened, chosen, program, geometry, slots, score_dtype, needed, given, device)

    if gpu_layers is None:
        return plan_for(find(backend, device))
    return plan_split(plan_for, config.num_hidden_layers, gpu_layers, backend, device)


def _choose_dtype(backend: Backend, asked: str | None) -> str:
    if asked is not None and asked not in backend.cache_dtypes:
        allowed, what = ", ".join(backend.cache_dtypes), f"backend {backend.name} has no such kind of cache"
        raise UsageError(what, key="cache_dtype", found=repr(asked), allowed=allowed)
    return asked or DEFAULT_CACHE_DTYPE


def choose_context(config: ModelConfig, context: int | None) -> int:
    """The context to use. Raises `UsageError` where the model was not made for so many positions."""
    longest = config.max_position_embeddings
    if context is None:
        return min(longest, DEFAULT_CONTEXT)
    slides = bool(config.layer_windows) and all(window is not None for window in config.layer_windows)
    return check_count("context", context, 1 << 27 if slides else longest)


def check_count(key: str, value: Any, most: int) -> int:
    """A whole number from 1 to `most`. Raises `UsageError`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise UsageError("not a whole number in its range", key=key, found=repr(value), allowed=f"1 to {most}")
    return value


def _text(key: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise UsageError("not a text", key=key, found=type(value).__name__)
    return value

"""Engines over the fake backend, and the plain loop that defines what they must generate."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellm.backends.interface import Batch
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.engine.engine import Engine
from edgellm.engine.eviction import raw_policy, raw_sinks
from edgellm.engine.sampling import SamplingParams
from edgellm.engine.sequence import Request
from tests.fakes import EOS, FakeConfig, FakeRunner, FakeTokenizer


def geometry_of(context: int = 256, chunk: int = 16, windows: tuple[int | None, ...] = (None, None)) -> CacheGeometry:
    return CacheGeometry(context, windows, 1, 4, chunk, "float32")


def engine_of(
    *,
    context: int = 256,
    chunk: int = 16,
    slots: int = 1,
    windows: tuple[int | None, ...] = (None, None),
    **runner: Any,
) -> Engine:
    fake = FakeRunner(FakeConfig(layer_windows=windows), **runner)
    return Engine(fake, fake.new_cache(geometry_of(context, chunk, windows), slots), slots)


def request_of(prompt: list[int], *, evict: str = "shift", context: int = 256, **options: Any) -> Request:
    names = {name: options.pop(name) for name in ("owner", "cancel", "dropped_tokens", "policy") if name in options}
    names.setdefault("policy", raw_policy(evict))
    options.setdefault("max_tokens", 8)
    options.setdefault("ignore_eos", True)
    return Request(
        prompt=list(prompt),
        params=SamplingParams(**options),
        tokenizer=FakeTokenizer(),
        eos_token_ids=frozenset({EOS}),
        sinks=raw_sinks(context),
        **names,
    )


def fresh_logits(tokens: list[int], windows: tuple[int | None, ...] = (None, None)) -> np.ndarray:
    """float32 [V] after `tokens` alone in a new cache."""
    runner = FakeRunner(FakeConfig(layer_windows=windows))
    size = len(tokens) + 1
    cache = runner.new_cache(CacheGeometry(size, windows, 1, 4, size, "float32"), 1)
    return runner.run(cache, Batch.of([(SlotState(0), tokens, "last")]))[0]


def greedy_ids(prompt: list[int], count: int, windows: tuple[int | None, ...] = (None, None)) -> list[int]:
    """The greedy continuation without any cache, `count` ids."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(fresh_logits(ids, windows)[: FakeTokenizer.vocab_size].argmax()))
    return ids[len(prompt) :]

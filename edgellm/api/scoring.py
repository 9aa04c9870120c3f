"""Logits and likelihoods of given tokens, in a cache of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from edgellm.backends.interface import Batch
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.engine.engine import Engine
from edgellm.engine.sampler import log_softmax
from edgellm.errors import ContextLengthError, NumericalError, UsageError

#: Tokens a step at least, and bytes of float32 that the logits of a longer one may take.
_CHUNK = 32
_LOGITS_BYTES = 16 << 20


@dataclass(frozen=True)
class Score:
    """How likely a text is.

    Attributes:
        tokens: T token ids.
        logprobs: float32 [T - 1], natural logarithms, of each token but the first given those before it.
        nll: minus their sum. nll_per_token: nll / (T - 1). perplexity: exp(nll_per_token).
    """

    tokens: list[int]
    logprobs: np.ndarray
    nll: float
    nll_per_token: float
    perplexity: float


def logits_of(engine: Engine, tokens: list[int], cache_dtype: str, wanted: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """(row of the first, logits float32 [n, V]) of consecutive tokens; steps wholly before row `wanted` are left out.

    Raises:
        ContextLengthError: more tokens than the context holds.
        EngineClosed, OutOfMemoryError: see there.
    """
    geometry = engine.geometry
    if not geometry.unbounded and len(tokens) > geometry.context:
        raise ContextLengthError(
            f"there are {len(tokens)} tokens and the context holds {geometry.context}",
            key="tokens",
            hint="Give fewer tokens or load the model with a larger context.",
        )
    vocab_size = engine.runner.program.config.vocab_size
    chunk = min(geometry.chunk, max(_LOGITS_BYTES // (4 * vocab_size), _CHUNK))
    small = replace(geometry, context=_context_for(geometry, len(tokens)), chunk=chunk, dtype=cache_dtype)
    with engine.exclusive() as runner:
        cache = runner.new_cache(small, 1)
    state = SlotState(0)
    for first in range(0, len(tokens), chunk):
        part = tokens[first : first + chunk]
        seen = first + len(part) > wanted
        batch = Batch.of([(state, part, "all" if seen else "none")])
        with engine.exclusive() as runner:
            rows = runner.run(cache, batch)
        state = state.extended(len(part))
        if seen:
            yield first, rows


def _context_for(geometry: CacheGeometry, count: int) -> int:
    """Positions for `count` tokens; a geometry whose layers all slide stays one."""
    return geometry.context if geometry.unbounded else count


def score(engine: Engine, tokens: list[int], cache_dtype: str) -> Score:
    """The likelihood of `tokens`, T at least 2.

    Raises:
        UsageError: fewer than two tokens.
        NumericalError: a logit is NaN or infinite.
        ContextLengthError, EngineClosed: see `logits_of`.
    """
    if len(tokens) < 2:
        raise UsageError("a score needs at least two tokens", key="tokens", found=len(tokens))
    found = np.empty(len(tokens) - 1, np.float64)
    for first, rows in logits_of(engine, tokens, cache_dtype):
        if not np.isfinite(rows).all():
            raise NumericalError("a logit is NaN or infinite", key=f"token {first + int(_first_bad(rows))}")
        following = tokens[first + 1 : first + 1 + len(rows)]
        rows = rows[: len(following)]
        found[first : first + len(following)] = log_softmax(rows)[np.arange(len(following)), following]
    nll = float(-found.sum())
    mean = nll / len(found)
    return Score(list(tokens), found.astype(np.float32), nll, mean, math.exp(mean) if mean < 700 else math.inf)


def _first_bad(rows: np.ndarray) -> int:
    return int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])

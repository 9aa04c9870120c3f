"""From logits to one token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgellm.engine.sampling import SamplingParams
from edgellm.errors import NumericalError, UsageError

#: Tokens whose order is found first when only `top_p` limits the choice; their mass nearly always suffices.
_FIRST_SORT = 1024
#: Values of a block whose maximum is looked at first.
_BLOCK = 128


class Sampler:
    """Chooses the tokens of one sequence, in the order that `SamplingParams` states.

    Args:
        params: the checked parameters.
        vocab_size: ids from here on have no text and are never chosen.
        prompt: the ids that `repetition_penalty` counts besides the answer's.

    Raises:
        UsageError: `logit_bias` names an id that is not there.
    """

    def __init__(self, params: SamplingParams, vocab_size: int, prompt: Sequence[int]) -> None:
        self.params = params
        self.vocab_size = vocab_size
        # a greedy answer waits for no generator: NumPy's takes 5 ms to import
        self._random = np.random.default_rng(params.seed) if params.temperature else None
        beyond = [token for token in params.logit_bias if token >= vocab_size]
        if beyond:
            raise UsageError("no such token id", key="logit_bias", found=beyond[0], allowed=f"0 to {vocab_size - 1}")
        self._bias_ids = np.array(list(params.logit_bias), np.int64)
        self._bias = np.array(list(params.logit_bias.values()), np.float64)
        self._penalised = bool(
            params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty or self._bias.size
        )
        if self._penalised:
            ids = np.asarray(prompt, np.int64)
            self._seen = np.zeros(vocab_size, bool)
            self._seen[ids[ids < vocab_size]] = True
            self._counts = np.zeros(vocab_size, np.int32)

    def pick(self, logits: np.ndarray) -> int:
        """The next token.

        Args:
            logits: float32 [V].

        Raises:
            NumericalError: a logit is NaN or infinite.
        """
        if not math.isfinite(np.add.reduce(logits)) and not np.isfinite(logits).all():  # one pass where all is well
            bad = int(np.flatnonzero(~np.isfinite(logits))[0])
            raise not_finite(f"the logit of token {bad} is {logits[bad]}")
        scores = self._penalise(logits) if self._penalised else logits[: self.vocab_size]
        token = int(scores.argmax()) if self.params.temperature == 0 else self._draw(scores)
        if self._penalised:
            self._seen[token] = True
            self._counts[token] += 1
        return token

    def _penalise(self, logits: np.ndarray) -> np.ndarray:
        params = self.params
        scores = logits[: self.vocab_size].astype(np.float64)
        scores[self._bias_ids] += self._bias
        if params.repetition_penalty != 1:
            seen = scores[self._seen]
            factor = np.where(seen > 0, 1 / params.repetition_penalty, params.repetition_penalty)
            scores[self._seen] = seen * factor
        if params.presence_penalty or params.frequency_penalty:
            scores -= params.presence_penalty * (self._counts > 0) + params.frequency_penalty * self._counts
        return scores

    def _draw(self, scores: np.ndarray) -> int:
        params = self.params
        ids: np.ndarray | None = None
        if 0 < params.top_k < scores.size:
            ids = _largest(scores, params.top_k)
            scores = scores[ids]
        weights = np.exp((scores.astype(np.float64) - scores.max()) / params.temperature)
        if params.top_p < 1:
            order = _nucleus(weights, params.top_p)
            weights = weights[order]
            ids = order if ids is None else ids[order]
        if params.min_p > 0:
            kept = np.flatnonzero(weights >= params.min_p * weights.max())
            weights = weights[kept]
            ids = kept if ids is None else ids[kept]
        sums = weights.cumsum()
        at = min(int(np.searchsorted(sums, self._random.random() * sums[-1], side="right")), sums.size - 1)
        return at if ids is None else int(ids[at])


def not_finite(what: str) -> NumericalError:
    """The error of a row whose logits are not all finite."""
    return NumericalError(what, hint="`edgellm check` finds weights that are not finite; other sequences go on.")


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest, descending, the first index first on ties."""
    # As many blocks as that have a maximum of at least `bound`, so the `count` largest are among what reaches it: of
    # 150,000 values the 40 largest are found in 0.1 ms, by partitioning them all in 1.3.
    blocks = values[: values.size // _BLOCK * _BLOCK].reshape(-1, _BLOCK).max(axis=1)
    if count < blocks.size:
        found = np.flatnonzero(values >= np.partition(blocks, blocks.size - count)[blocks.size - count])
    else:
        found = np.arange(values.size)
    candidates = values[found]
    least = np.partition(candidates, candidates.size - count)[candidates.size - count]
    found = found[candidates >= least]
    return found[np.argsort(-values[found], kind="stable")][:count]


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the fewest largest whose share of the sum reaches `top_p`, descending."""
    wanted = top_p * weights.sum()
    order = _largest(weights, min(_FIRST_SORT, weights.size))
    sums = weights[order].cumsum()
    if sums[-1] < wanted:
        order = np.argsort(-weights, kind="stable")
        sums = weights[order].cumsum()
    return order[: int(np.searchsorted(sums, wanted, side="left")) + 1]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities float64 of logits [..., V]."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def top_logprobs(logprobs: np.ndarray, count: int) -> list[tuple[int, float]]:
    """The `count` most probable (token, log-probability), best first."""
    if count == 0:
        return []
    return [(int(token), float(logprobs[token])) for token in _largest(logprobs, min(count, logprobs.size))]

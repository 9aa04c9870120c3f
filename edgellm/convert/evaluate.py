"""How well a model predicts a text: perplexity, bits per byte, and how far it is from another model.

Every window of `windows` is run through the model; with a second model both see the same ids, and at every counted id
the two distributions over the whole vocabulary are compared: KL(other || model) = sum p_other (log p_other - log p).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from edgellm.convert.windows import Window
from edgellm.errors import NumericalError, UsageError

#: (ids, index of the first row wanted) -> (index of the first row, logits float32 [n, V]) of consecutive ids.
Logits = Callable[[Sequence[int], int], Iterator[tuple[int, np.ndarray]]]
#: Rows of logits are compared in blocks of about so many bytes of float64.
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Divergence:
    """How far a model is from another one, over the same ids.

    Attributes:
        nll_per_token, perplexity: of the other model.
        nll_difference: nll_per_token of the model minus that of the other; nll_difference_error its standard error,
            the ids taken as independent.
        kl_mean, kl_median, kl_p99, kl_max: KL(other || model) in nats a token.
        top1_agreement: share of ids where both find the same token most likely.
        tokens_per_second: ids that the other model ran through, a second.
    """

    nll_per_token: float
    perplexity: float
    nll_difference: float
    nll_difference_error: float
    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    Attributes:
        tokens: ids that were counted, each once. excluded: ids that nothing stands before, so that none predicts them.
        window, stride: in ids.
        nll_per_token: mean negative log-likelihood in nats; nll_error its standard error. perplexity: its exponential.
        bytes: of the text that was counted, UTF-8. bits_per_byte: does not depend on the tokenizer.
        seconds: in the model. tokens_per_second: ids that ran through it, context included, a second.
        against: against another model, None without.
    """

    tokens: int
    excluded: int
    window: int
    stride: int
    nll_per_token: float
    nll_error: float
    perplexity: float
    bytes: int
    bits_per_byte: float
    seconds: float
    tokens_per_second: float
    against: Divergence | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; infinity, which JSON lacks, becomes None."""
        return _finite(asdict(self))


@dataclass
class Sums:
    """What has been counted so far.

    Attributes:
        nll, other_nll, kl: float32 arrays, a number a counted id.
        agreed: ids where both models find the same token most likely.
        seconds, other_seconds: in each model. ran: ids that ran through one.
    """

    nll: list[np.ndarray] = field(default_factory=list)
    other_nll: list[np.ndarray] = field(default_factory=list)
    kl: list[np.ndarray] = field(default_factory=list)
    agreed: int = 0
    seconds: float = 0.0
    other_seconds: float = 0.0
    ran: int = 0

    @property
    def tokens(self) -> int:
        """Counted ids."""
        return sum(map(len, self.nll))

    @property
    def nll_per_token(self) -> float:
        """The mean so far, NaN before the first id."""
        return _mean(self.nll)


def count_window(sums: Sums, window: Window, model: Logits, other: Logits | None = None) -> None:
    """Run one window and add what it gives to `sums`.

    Raises:
        NumericalError: a model gives NaN or infinity.
    """
    ids = np.asarray(window.tokens)
    wanted = window.first - 1  # row i predicts id i + 1
    rows = _timed(model(window.tokens, wanted), sums, "seconds")
    others = iter(()) if other is None else _timed(other(window.tokens, wanted), sums, "other_seconds")
    sums.ran += len(ids)
    for first, last, logits, other_logits in _paired(rows, others, other is not None):
        low, high = max(first, wanted), min(last, len(ids) - 1)
        if low >= high:
            continue
        targets = ids[low + 1 : high + 1]
        _count(sums, logits[low - first : high - first], targets, low)
        if other_logits is not None:
            _compare(sums, logits[low - first : high - first], other_logits[low - first : high - first], targets, low)


def summarize(sums: Sums, *, window: int, stride: int, nbytes: int, excluded: int) -> Evaluation:
    """The figures of what was counted. Raises `UsageError` where that is nothing."""
    if not sums.tokens:
        raise UsageError("the text has nothing to predict", key="text", hint="It needs at least two tokens.")
    mean = sums.nll_per_token
    total_bits = mean * sums.tokens / math.log(2)
    return Evaluation(
        tokens=sums.tokens,
        excluded=excluded,
        window=window,
        stride=stride,
        nll_per_token=mean,
        nll_error=_standard_error(np.concatenate(sums.nll)),
        perplexity=_exp(mean),
        bytes=nbytes,
        bits_per_byte=total_bits / nbytes if nbytes else math.inf,
        seconds=sums.seconds,
        tokens_per_second=_rate(sums.ran, sums.seconds),
        against=_divergence(sums) if sums.kl else None,
    )


def evaluate_windows(
    windows: Iterable[Window], model: Logits, other: Logits | None = None, *, window: int, stride: int, nbytes: int = 0
) -> Evaluation:
    """All windows counted. Raises as `count_window` and `summarize`."""
    sums = Sums()
    for part in windows:
        count_window(sums, part, model, other)
    return summarize(sums, window=window, stride=stride, nbytes=nbytes, excluded=0)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities float64 of logits [..., V]."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _count(sums: Sums, logits: np.ndarray, targets: np.ndarray, at: int) -> None:
    sums.nll.append(_nll(logits, targets, at))


def _nll(logits: np.ndarray, targets: np.ndarray, at: int) -> np.ndarray:
    """-log p of `targets` [n] under logits [n, V]; `at` names the first row in an error. float32 [n]."""
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        row = at + int(np.flatnonzero(~finite)[0])
        raise NumericalError("a logit is NaN or infinite", key=f"id {row} of the window")
    found = [
        -log_softmax(logits[part])[np.arange(part.stop - part.start), targets[part]] for part in _blocks(*logits.shape)
    ]
    return np.concatenate(found).astype(np.float32)


def _compare(sums: Sums, logits: np.ndarray, others: np.ndarray, targets: np.ndarray, at: int) -> None:
    sums.other_nll.append(_nll(others, targets, at))
    # an embedding may be padded in one of the two: what only one has is no token
    common = min(logits.shape[1], others.shape[1])
    logits, others = logits[:, :common], others[:, :common]
    for part in _blocks(*logits.shape):
        p, q = log_softmax(others[part]), log_softmax(logits[part])
        sums.kl.append((np.exp(p) * (p - q)).sum(axis=1).astype(np.float32))
    sums.agreed += int((logits.argmax(axis=1) == others.argmax(axis=1)).sum())


def _blocks(rows: int, vocab: int) -> list[slice]:
    step = max(_BLOCK_BYTES // (8 * vocab), 1)
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def _timed(steps: Iterator[tuple[int, np.ndarray]], sums: Sums, clock: str) -> Iterator[tuple[int, np.ndarray]]:
    """The steps of a model, the time in it added to `sums`."""
    while True:
        start = time.perf_counter()
        step = next(steps, None)
        setattr(sums, clock, getattr(sums, clock) + time.perf_counter() - start)
        if step is None:
            return
        yield step


def _paired(
    rows: Iterator[tuple[int, np.ndarray]], others: Iterator[tuple[int, np.ndarray]], both: bool
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray | None]]:
    """(first row, one past the last, logits, the other model's): two models may step by different numbers of rows."""
    if not both:
        for first, logits in rows:
            yield first, first + len(logits), logits, None
        return
    mine, theirs = next(rows, None), next(others, None)
    while mine is not None and theirs is not None:
        low = max(mine[0], theirs[0])
        high = min(mine[0] + len(mine[1]), theirs[0] + len(theirs[1]))
        if low < high:
            yield low, high, mine[1][low - mine[0] : high - mine[0]], theirs[1][low - theirs[0] : high - theirs[0]]
        if mine[0] + len(mine[1]) == high:
            ended = mine
            mine = next(rows, None)
            if theirs[0] + len(theirs[1]) == ended[0] + len(ended[1]):
                theirs = next(others, None)
        else:
            theirs = next(others, None)


def _divergence(sums: Sums) -> Divergence:
    kl = np.concatenate(sums.kl).astype(np.float64)
    other = _mean(sums.other_nll)
    difference = np.concatenate(sums.nll).astype(np.float64) - np.concatenate(sums.other_nll)
    return Divergence(
        nll_per_token=other,
        perplexity=_exp(other),
        nll_difference=float(difference.mean()),
        nll_difference_error=_standard_error(difference),
        kl_mean=float(kl.mean()),
        kl_median=float(np.median(kl)),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
        top1_agreement=sums.agreed / len(kl),
        tokens_per_second=_rate(sums.ran, sums.other_seconds),
    )


def _mean(parts: list[np.ndarray]) -> float:
    count = sum(map(len, parts))
    return sum(float(part.sum(dtype=np.float64)) for part in parts) / count if count else math.nan


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(dtype=np.float64, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else math.inf


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

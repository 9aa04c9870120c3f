"""What a caller may ask of the sampler, and what is refused."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

from edgellm.backends.interface import LogitsUse
from edgellm.errors import UsageError

MAX_TOKENS_LIMIT = 2**31 - 1
MAX_LOGPROBS = 20
#: Tokens of which one is taken at most, for `LogitsUse.LARGEST`.
_FEW = 100


class SamplingOptions(TypedDict, total=False):
    """What callers may give of `SamplingParams`; None leaves the default."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: int | None
    ignore_eos: bool | None


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen; checked on creation.

    The logits of a step are processed in this order:

    1. ids without text (rows that only pad the embedding) are excluded,
    2. `logit_bias` is added,
    3. `repetition_penalty` p (Keskar et al., arXiv:1909.05858): logits of tokens of the prompt or the answer are
       divided by p where positive, multiplied where negative,
    4. `presence_penalty` and `frequency_penalty` times the count are subtracted for tokens of the answer,
    5. temperature 0 takes the largest, the first one on ties, and ends here; else logits are divided by it,
    6. `top_k` keeps the k largest (0: all; more than there are: all),
    7. `top_p` (nucleus, arXiv:1904.09751) keeps the fewest of those whose probability reaches p,
    8. `min_p` (arXiv:2407.01082) keeps those with at least p times the probability of the best,
    9. one of those left, never none, is drawn with a generator of the sequence's own. A backend that draws where the
       logits are (CUDA) has another generator, so a seed gives other tokens there, and keeps all that tie at the edge
       of `top_k`.

    `logprobs` are those of the model's own distribution, before step 1.

    Attributes:
        max_tokens: the most tokens to generate; None: as many as fit, at most 4096.
        temperature: 0 to 100. top_k: 0 or more. top_p: above 0, up to 1. min_p: 0 to 1.
        repetition_penalty: above 0, up to 100; 1 changes nothing. presence_penalty, frequency_penalty: -2 to 2.
        logit_bias: -100 to 100 by token id.
        seed: 0 to 2**64 - 1; None draws a new one each time.
        stop: strings that end the answer; none of their text is given out.
        logprobs: how many alternatives to report with each token's own (0 to 20); None reports nothing.
        ignore_eos: go on after an end-of-sequence token.

    Raises:
        UsageError: a value is of the wrong type or outside its range; `key` names it.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "max_tokens", _integer("max_tokens", self.max_tokens, 1, MAX_TOKENS_LIMIT, optional=True))
        put(self, "temperature", _real("temperature", self.temperature, 0, 100))
        put(self, "top_k", _integer("top_k", self.top_k, 0, MAX_TOKENS_LIMIT))
        put(self, "top_p", _real("top_p", self.top_p, 0, 1, above=True))
        put(self, "min_p", _real("min_p", self.min_p, 0, 1))
        put(self, "repetition_penalty", _real("repetition_penalty", self.repetition_penalty, 0, 100, above=True))
        put(self, "presence_penalty", _real("presence_penalty", self.presence_penalty, -2, 2))
        put(self, "frequency_penalty", _real("frequency_penalty", self.frequency_penalty, -2, 2))
        put(self, "logit_bias", _bias(self.logit_bias))
        put(self, "seed", _integer("seed", self.seed, 0, 2**64 - 1, optional=True))
        put(self, "stop", _stops(self.stop))
        put(self, "logprobs", _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS, optional=True))
        if not isinstance(self.ignore_eos, bool):
            raise UsageError("not true or false", key="ignore_eos", found=repr(self.ignore_eos))

    @property
    def logits_use(self) -> LogitsUse:
        """What the logits are for: all count for log-probabilities, and where a token far below can be lifted."""
        least = min(self.repetition_penalty - 1, self.presence_penalty, self.frequency_penalty)
        if self.logprobs is not None or self.logit_bias or least < 0:
            return LogitsUse.ALL
        few = self.temperature == 0 or 0 < self.top_k <= _FEW or self.min_p >= 1 / _FEW
        return LogitsUse.LARGEST if few else LogitsUse.DRAWN

    @property
    def plain(self) -> bool:
        """Whether temperature, top_k and top_p alone decide, and nobody asks for log-probabilities."""
        changed = self.min_p or self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty
        return not changed and self.logits_use != LogitsUse.ALL

    def updated(self, **given: Any) -> SamplingParams:
        """These parameters with those of `given` that are not None. Raises `UsageError`, for unknown names too."""
        names = {item.name for item in fields(self)}
        unknown = sorted(set(given) - names)
        if unknown:
            raise UsageError("no such option", key=unknown[0], allowed=", ".join(sorted(names)))
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def _integer(key: str, value: Any, low: int, high: int, *, optional: bool = False) -> int | None:
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not low <= value <= high:
        raise UsageError("not a whole number in its range", key=key, found=repr(value), allowed=f"{low} to {high}")
    return int(value)


def _real(key: str, value: Any, low: float, high: float, *, above: bool = False) -> float:
    allowed = f"above {low}, up to {high}" if above else f"{low} to {high}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise UsageError("not a finite number", key=key, found=repr(value), allowed=allowed)
    if not low <= value <= high or (above and value == low):
        raise UsageError("number outside its range", key=key, found=value, allowed=allowed)
    return float(value)


def _bias(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise UsageError("not a mapping of token ids to numbers", key="logit_bias", found=type(value).__name__)
    return {
        _integer("logit_bias", token, 0, MAX_TOKENS_LIMIT): _real(f"logit_bias[{token}]", bias, -100, 100)
        for token, bias in value.items()
    }


def _stops(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, (list, tuple)) or not all(isinstance(stop, str) and stop for stop in stops):
        raise UsageError("not a text or a list of texts, none of them empty", key="stop", found=repr(value))
    return tuple(stops)

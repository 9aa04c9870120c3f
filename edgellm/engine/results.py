"""What a generation gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token's log-probability under the model's own distribution.

    Attributes:
        token, text: the id and its piece of text, U+FFFD for parts of a character.
        logprob: natural logarithm.
        top: the most probable (token, logprob), best first, as many as were asked for.
    """

    token: int
    text: str
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """A part of a streamed answer.

    Attributes:
        text: the text that can be given out now, often empty in the middle of a character or of a stop string.
        token: the id that was generated; None for text that was held back until the end.
        logprob: where log-probabilities were asked for.
    """

    text: str
    token: int | None
    logprob: TokenLogprob | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens: of the prompt, those of them found in the slot, generated, and dropped to make room."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    evicted_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds: from the slot to the first token, from there to the end, from the call to the first token and in all."""

    prefill_s: float
    decode_s: float
    ttft_s: float
    total_s: float


@dataclass(frozen=True)
class Result:
    """A finished answer; `str()` of it is the text.

    Attributes:
        text: without the stop string.
        tokens: all generated ids but an end-of-sequence id.
        finish_reason: "stop" (end of sequence or stop string), "length" (max_tokens), "cancelled" or "context".
        logprobs: one a token, where asked for.
        dropped: messages that left the conversation for this answer, oldest first.
        notes: sentences for people, such as what was dropped.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    usage: Usage
    timings: Timings
    logprobs: list[TokenLogprob] | None = None
    dropped: tuple[Mapping[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text

"""One prompt on its way to an answer."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from edgellm.backends.interface import Choice
from edgellm.engine.eviction import EvictionPolicy
from edgellm.engine.results import Piece, Result, Timings, TokenLogprob, Usage
from edgellm.engine.sampler import Sampler, log_softmax, not_finite, top_logprobs
from edgellm.engine.sampling import SamplingParams
from edgellm.engine.slot import Slot
from edgellm.errors import UsageError
from edgellm.text import StopMatcher, Tokenizer

#: Prompt tokens shown to the decoder of a raw text first, so that a leading space is not taken for the text's start.
_PRIMING = 8
#: The least temperature that a backend is asked to draw with: in float32 the logits of lower ones are too coarse beside
#: the noise of the draw.
_LEAST_TEMPERATURE = 0.01
_SEED_BITS = 64


@dataclass(frozen=True)
class Request:
    """What a sequence starts from.

    Attributes:
        prompt: at least one token id.
        params: max_tokens is a number here.
        tokenizer: for the text of the answer.
        eos_token_ids: ids that end the answer.
        policy: what leaves when the slot is full.
        sinks: tokens at the start that stay.
        owner: the conversation, None for raw prompts.
        dropped_tokens: tokens behind the sinks that the conversation dropped since its last prompt.
        continues_text: the answer's text goes on from the prompt's.
        cancel: ends the answer once set.
    """

    prompt: list[int]
    params: SamplingParams
    tokenizer: Tokenizer
    eos_token_ids: frozenset[int]
    policy: EvictionPolicy
    sinks: int = 0
    owner: object | None = None
    dropped_tokens: int = 0
    continues_text: bool = False
    cancel: threading.Event | None = None


class Sequence:
    """The state of a request: what is still to be run, what has been generated, how it ended.

    Raises:
        UsageError: an option that only the model shows to be out of range, or a `cancel` that is no event.

    Attributes:
        slot: where it runs; None while it waits and after its end.
        todo: token ids that are still to be run; the logits of the last one give the next token.
        pieces: what the consumer has not fetched yet.
        finish_reason, error: set at the end, one of the two.
    """

    def __init__(self, request: Request) -> None:
        if request.cancel is not None and not callable(getattr(request.cancel, "is_set", None)):
            raise UsageError("not a threading.Event", key="cancel", found=type(request.cancel).__name__)
        self.request = request
        self.slot: Slot | None = None
        self.todo: list[int] = list(request.prompt)
        self.pieces: deque[Piece] = deque()
        self.finish_reason: str | None = None
        self.error: BaseException | None = None
        self.cancel_requested = False
        self.cached_tokens = 0
        self.evicted_tokens = request.dropped_tokens
        self.tokens: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._sampler = Sampler(request.params, request.tokenizer.vocab_size, request.prompt)
        self._matcher = StopMatcher(request.params.stop)
        self._decoder = request.tokenizer.decoder(skip_special_tokens=True)
        if request.continues_text:
            for token in request.prompt[-_PRIMING:]:
                self._decoder.push(token)
        self._choice = self._first_choice()
        self._made = time.perf_counter()
        self._admitted = self._first = self._ended = 0.0

    @property
    def over(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def cancelled(self) -> bool:
        return self.cancel_requested or (self.request.cancel is not None and self.request.cancel.is_set())

    @property
    def decoding(self) -> bool:
        """Whether only the last generated token is still to be run."""
        return len(self.todo) == 1

    @property
    def left(self) -> int:
        """Tokens that it may still give."""
        return (self.request.params.max_tokens or 0) - len(self.tokens)

    def admitted(self, slot: Slot, cached: int) -> None:
        """The sequence has got a slot that already holds `cached` tokens of the prompt."""
        self.slot = slot
        self.cached_tokens = cached
        self.todo = self.request.prompt[cached:]
        self._admitted = time.perf_counter()

    def choice(self, draws: bool = True) -> Choice | None:
        """How a backend may choose the next token; None where it cannot be told, for this sequence always, or may not
        draw."""
        first = self._choice if draws or self.request.params.temperature == 0 else None
        if first is None or not first.temperature:
            return first
        return Choice(first.vocab_size, first.temperature, first.top_k, first.top_p, first.seed, len(self.tokens))

    def accept(self, logits: np.ndarray) -> None:
        """Choose the next token from logits float32 [V]. Raises `NumericalError`."""
        self._take(self._sampler.pick(logits), logits)

    def accept_token(self, token: int) -> None:
        """Take the token that was chosen as `choice` said. Raises `NumericalError` for -1."""
        if token < 0:
            raise not_finite("a logit is NaN or infinite")
        self._take(token, None)

    def _take(self, token: int, logits: np.ndarray | None) -> None:
        self._first = self._first or time.perf_counter()
        if token in self.request.eos_token_ids and not self.request.params.ignore_eos:
            self.finish("stop")
            return
        logprob = None if logits is None else self._logprob(logits, token)
        self.tokens.append(token)
        self.todo = [token]
        text, stopped = self._matcher.push(self._decoder.push(token))
        self._emit(Piece(text, token, logprob))
        if stopped:
            self.finish("stop")
        elif self.left <= 0:
            self.finish("length")

    def finish(self, reason: str) -> None:
        """End; text still held back is given out unless a stop string was met."""
        if self.over:
            return
        tail, _ = self._matcher.push(self._decoder.finish())
        tail += self._matcher.finish()
        if tail:
            self._emit(Piece(tail, None))
        self.finish_reason = "stop" if self._matcher.matched is not None else reason
        self._ended = time.perf_counter()

    def fail(self, error: BaseException) -> None:
        """End with an error for the consumer."""
        if not self.over:
            self.error = error
            self._ended = time.perf_counter()

    def result(self) -> Result:
        """The answer as far as it got."""
        request = self.request
        first = self._first or self._ended
        admitted = self._admitted or self._ended
        return Result(
            text="".join(self._texts),
            tokens=list(self.tokens),
            finish_reason=self.finish_reason or "cancelled",
            usage=Usage(len(request.prompt), self.cached_tokens, len(self.tokens), self.evicted_tokens),
            timings=Timings(
                prefill_s=max(first - admitted, 0.0),
                decode_s=max(self._ended - first, 0.0),
                ttft_s=max(first - self._made, 0.0),
                total_s=max(self._ended - self._made, 0.0),
            ),
            logprobs=list(self._logprobs) if request.params.logprobs is not None else None,
            dropped=request.policy.dropped,
            notes=request.policy.notes(self.evicted_tokens),
        )

    def _first_choice(self) -> Choice | None:
        params, vocab_size = self.request.params, self.request.tokenizer.vocab_size
        if not params.plain or 0 < params.temperature < _LEAST_TEMPERATURE:
            return None
        if params.temperature == 0:
            return Choice(vocab_size)
        seed = secrets.randbits(_SEED_BITS) if params.seed is None else params.seed
        return Choice(vocab_size, params.temperature, params.top_k, params.top_p, seed)

    def _emit(self, piece: Piece) -> None:
        self._texts.append(piece.text)
        self.pieces.append(piece)

    def _logprob(self, logits: np.ndarray, token: int) -> TokenLogprob | None:
        wanted = self.request.params.logprobs
        if wanted is None:
            return None
        logprobs = log_softmax(logits)
        text = self.request.tokenizer.piece_bytes(token).decode("utf-8", "replace")
        top = top_logprobs(logprobs[: self.request.tokenizer.vocab_size], wanted)
        self._logprobs.append(TokenLogprob(token, text, float(logprobs[token]), top))
        return self._logprobs[-1]


def check_prompt(tokens: Items[int], vocab_size: int) -> list[int]:
    """`tokens` as a list of int. Raises `UsageError` where there is none, or one that the model lacks."""
    ids = [int(token) for token in tokens]
    if not ids:
        raise UsageError("the prompt has no tokens", key="prompt", hint="Give at least one character or token id.")
    bad = next((token for token in ids if not 0 <= token < vocab_size), None)
    if bad is not None:
        raise UsageError("no such token id", key="prompt", found=bad, allowed=f"0 to {vocab_size - 1}")
    return ids

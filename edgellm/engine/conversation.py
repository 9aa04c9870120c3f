"""A conversation that goes on when it outgrows its slot."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

from edgellm.engine.engine import Engine
from edgellm.engine.eviction import EVICT_CHAT, check_evict
from edgellm.engine.results import Result
from edgellm.engine.sampling import SamplingParams
from edgellm.engine.sequence import Request, Sequence
from edgellm.engine.stream import Stream
from edgellm.engine.transcript import Message, Render, Transcript, check_messages, check_text
from edgellm.engine.turns import TurnEviction
from edgellm.errors import EngineBusy, EngineClosed, ModelError, UsageError
from edgellm.text import Tokenizer

#: The most tokens of an answer whose length nobody limits.
DEFAULT_MAX_TOKENS = 4096


class Conversation:
    """Messages and their answers over one slot; what a slot already holds of the prompt is not computed again.

    When prompt and answer do not fit, whole exchanges are dropped, oldest first, never the system prompt:
    `evict="shift"` keeps the other turns' keys and moves them (they still carry what they saw of the dropped ones);
    "recompute" prefills them anew; "error" refuses. What was dropped is in `Result.dropped`, `Result.notes` and
    `dropped`. One answer at a time.

    Args:
        engine: where it runs.
        render: messages to token ids.
        tokenizer: of the answers.
        eos_token_ids: ids that end an answer.
        params: what `send` starts from.
        system: the system prompt.
        messages: to begin with, with or without the system prompt.
        evict: see above.
        identity: what the model is, for `save`.

    Raises:
        UsageError: messages or options that are not usable.
    """

    def __init__(
        self,
        engine: Engine,
        render: Render,
        tokenizer: Tokenizer,
        eos_token_ids: frozenset[int],
        params: SamplingParams,
        *,
        system: str | None = None,
        messages: Items[Message] | None = None,
        evict: str = "shift",
        identity: str = "",
    ) -> None:
        found, turns = check_messages(list(messages or ()))
        if system is not None and found is not None:
            raise UsageError("given twice: system and a system message", key="system")
        self.engine = engine
        self.identity = identity
        self.evict = check_evict(evict, EVICT_CHAT)
        self._render = render
        self._tokenizer = tokenizer
        self._eos = eos_token_ids
        self._params = params
        self._transcript = Transcript(render, found if system is None else check_text(system, "system"), turns)
        self._dropped: list[Message] = []
        self._owner = object()
        self._lock = threading.Lock()
        self._answer: _Answer | None = None
        self._closed = False

    @property
    def messages(self) -> list[Message]:
        """The kept messages, the system prompt first; question and answer are added when the answer has ended."""
        self._settle()
        return self._transcript.messages

    @property
    def system(self) -> str | None:
        return self._transcript.system

    @property
    def dropped(self) -> list[Message]:
        """All messages dropped so far, oldest first."""
        self._settle()
        return [dict(message) for message in self._dropped]

    @property
    def context(self) -> int:
        """Tokens that the slot holds."""
        return self.engine.geometry.context

    @property
    def tokens_used(self) -> int:
        """Tokens of the kept messages."""
        if not self._transcript.turns:
            return self._transcript.sinks
        return len(self._render(self.messages, False))

    @overload
    def send(self, text: str, *, stream: Literal[False] = False, **options: Any) -> Result: ...
    @overload
    def send(self, text: str, *, stream: Literal[True], **options: Any) -> Stream: ...
    def send(self, text: str, *, stream: bool = False, **options: Any) -> Result | Stream:
        """Answer a message. `options` are those of `SamplingParams`, `evict`, and `cancel`, a `threading.Event`.

        Without `max_tokens` an answer may be as long as fits, at most 4096 tokens; a quarter of the context is made
        free for it where turns can be dropped. With it, turns are dropped in the middle of the answer too. A cancelled
        answer stays in the history as far as it got; after an error the conversation is as before.

        Raises:
            UsageError: an option outside its range.
            ContextLengthError: the message does not fit beside the system prompt.
            EngineBusy: another answer is under way.
            EngineClosed, NumericalError, TemplateError: see there.
        """
        return self._begin(lambda: (self._transcript, check_text(text, "text")), stream, options)

    def retry(self, *, stream: bool = False, **options: Any) -> Result | Stream:
        """Answer the last message again. As `send`; `UsageError` where there is none."""
        return self._begin(lambda: self._transcript.before_last_question(), stream, options)

    def edit(self, text: str, *, stream: bool = False, **options: Any) -> Result | Stream:
        """Put `text` in place of the last user message and answer it. As `send`; `UsageError` where there is none."""
        return self._begin(
            lambda: (self._transcript.before_last_question()[0], check_text(text, "text")), stream, options
        )

    def set_system(self, text: str | None) -> None:
        """Another system prompt for the same messages. Raises `EngineBusy` in the middle of an answer."""
        with self._idle():
            text = None if text is None else check_text(text, "system")
            self._transcript = Transcript(self._render, text, self._transcript.turns)

    def clear(self) -> None:
        """Forget all messages but the system prompt. Raises `EngineBusy` in the middle of an answer."""
        with self._idle():
            self._transcript = self._transcript.with_turns(())
            self._dropped = []
            self._owner = object()

    def cancel(self) -> None:
        """End the answer under way after at most one more step; from any thread. Without one nothing happens."""
        answer = self._answer
        if answer is not None:
            answer.sequence.cancel_requested = True

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write messages and what the slot holds into a safetensors file, aside first and then renamed.

        Raises:
            EngineBusy: in the middle of an answer.
            OutputError: the file cannot be written.
        """
        from edgellm.engine.session_file import Session, write_session

        with self._idle():
            held = self.engine.export(self._owner)
            session = Session(self.identity, self.evict, self.system, list(self._transcript.turns), self.dropped, held)
            write_session(path, session, self.engine.cache_identity)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Become the conversation that `save` wrote; a cache of another kind is left aside and computed anew.

        Raises:
            InputError: no such file.
            ModelError: the file is damaged, or was written with another model.
            EngineBusy: in the middle of an answer.
        """
        from edgellm.engine.session_file import read_session

        with self._idle():
            engine = self.engine
            vocab_size = engine.runner.program.config.vocab_size
            session = read_session(path, self.identity, engine.cache_identity, engine.geometry, vocab_size)
            owner = object()
            if session.held is not None:
                try:
                    engine.adopt(owner, session.held)
                except ModelError as error:
                    error.file = os.fspath(path)
                    raise
            self._owner, self.evict = owner, session.evict
            self._transcript = Transcript(self._render, session.system, session.turns)
            self._dropped = list(session.dropped)

    def close(self) -> None:
        """End the answer under way; the slot's content may be taken by others. A second call does nothing."""
        self._closed = True
        answer = self._answer
        if answer is not None:
            self.engine.finish(answer.sequence)
            self._ended(answer, answer.sequence.result())

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(
        self, question: Callable[[], tuple[Transcript, str]], stream: bool, options: dict[str, Any]
    ) -> Result | Stream:
        cancel = options.pop("cancel", None)
        evict = check_evict(options.pop("evict", None) or self.evict, EVICT_CHAT)
        params = self._params.updated(**options)
        with self._idle():
            before, text = question()
            policy = TurnEviction(before.with_message("user", text), evict)
            sequence = self.engine.submit(self._request(policy, params, cancel))
            answer = self._answer = _Answer(sequence, policy)
            running = Stream(
                self.engine,
                sequence,
                on_end=lambda result: self._ended(answer, result),
                on_error=lambda: self._ended(answer, None),
            )
            answer.stream = weakref.ref(running)
        if stream:
            return running
        with running:
            return running.drain()

    def _request(self, policy: TurnEviction, params: SamplingParams, cancel: threading.Event | None) -> Request:
        context = self.context
        bounded = not self.engine.geometry.unbounded
        if bounded:
            quarter = max(context // 4, 1)
            policy.fit(context, min(params.max_tokens or quarter, quarter))
        prompt = policy.transcript.prompt
        if params.max_tokens is None:
            room = max(context - len(prompt), 1) if bounded else DEFAULT_MAX_TOKENS
            params = replace(params, max_tokens=min(room, DEFAULT_MAX_TOKENS))
        return Request(
            prompt=prompt,
            params=params,
            tokenizer=self._tokenizer,
            eos_token_ids=self._eos,
            policy=policy,
            sinks=min(policy.transcript.sinks, len(prompt)),
            owner=None if policy.mode == "recompute" else self._owner,
            dropped_tokens=policy.dropped_tokens,
            cancel=cancel,
        )

    @contextmanager
    def _idle(self) -> Iterator[None]:
        """The conversation between two answers, kept so by its lock."""
        self._settle()
        with self._lock:
            if self._closed:
                raise EngineClosed("the conversation is closed")
            if self._answer is not None:
                raise EngineBusy(
                    "this conversation is in the middle of an answer",
                    hint="Iterate to its end, or close() the stream.",
                )
            yield

    def _settle(self) -> None:
        """End an answer whose stream was dropped by the caller."""
        answer = self._answer
        if answer is not None and answer.stream is not None and answer.stream() is None:
            self.engine.finish(answer.sequence)
            self._ended(answer, answer.sequence.result())

    def _ended(self, answer: _Answer, result: Result | None) -> None:
        """Take an answer into the history; None where it ended in an error. Once for each answer."""
        with self._lock:
            if self._answer is not answer:
                return
            self._answer = None
            if result is not None:
                self._transcript = answer.policy.transcript.with_message("assistant", result.text)
                self._dropped.extend(answer.policy.dropped)


@dataclass
class _Answer:
    """An answer under way; its stream is the caller's, who may drop it."""

    sequence: Sequence
    policy: TurnEviction
    stream: weakref.ref[Stream] | None = None

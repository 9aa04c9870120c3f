"""A loaded model."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.api import scoring
from edgellm.engine.conversation import DEFAULT_MAX_TOKENS, Conversation
from edgellm.engine.engine import Engine
from edgellm.engine.eviction import raw_policy, raw_sinks
from edgellm.engine.results import Result
from edgellm.engine.sampling import SamplingOptions, SamplingParams
from edgellm.engine.sequence import Request, check_prompt
from edgellm.engine.stream import Stream
from edgellm.engine.transcript import Render, check_text
from edgellm.errors import TemplateError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgellm.model import ModelConfig
    from edgellm.text import ChatTemplate, Tokenizer


class LLM:
    """A model that is loaded; made by `edgellm.load`. A context manager.

    Several threads may generate at the same time; sequences beyond the number of slots wait for one.

    Args:
        engine: over the loaded model; closed with this object.
        tokenizer: of the model.
        template: its chat template, None where it has none.
        render: messages to token ids, None where there is no template.
        eos_token_ids: ids that end an answer.
        defaults: sampling where the caller says nothing.
        score_dtype: of the cache that `score` and `logits` use.
        info: facts about what runs where.
        identity: what the model is, for saved conversations.

    Attributes:
        config, tokenizer, template: of the model.
        defaults: sampling where the caller says nothing.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        template: ChatTemplate | None = None,
        render: Render | None = None,
        eos_token_ids: Iterable[int] = (),
        defaults: SamplingParams | None = None,
        score_dtype: str = "float32",
        info: Mapping[str, Any] | None = None,
        identity: str = "",
    ) -> None:
        self.config: ModelConfig = engine.runner.program.config
        self.tokenizer = tokenizer
        self.template = template
        self.defaults = defaults or SamplingParams()
        self._engine = engine
        self._render = render
        self._eos = frozenset(eos_token_ids)
        self._score_dtype = score_dtype
        self._info = dict(info or {})
        self._identity = identity

    @property
    def info(self) -> dict[str, Any]:
        """JSON-able facts: path, architecture, parameters, quantization, context, backend, device, bytes, notes ..."""
        return dict(self._info)

    @property
    def context(self) -> int:
        """Tokens that a slot holds."""
        return self._engine.geometry.context

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        evict: str = "shift",
        cancel: threading.Event | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Result:
        """Continue a prompt.

        A text is the programmer's own: special tokens spelled in it are recognised, as in transformers. For what
        people type use `chat`.

        Args:
            prompt: text or token ids.
            evict: when the slot is full, "shift" drops the oldest tokens behind the first four; "stop" ends the answer
                with finish_reason "context".
            cancel: ends the answer once set, with what there is of it.
            sampling: max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
                frequency_penalty, logit_bias, seed, stop, logprobs, ignore_eos, as `SamplingParams` explains them. None
                takes generation_config.json's where it says `do_sample`, else greedy; max_tokens what fits, up to 4096.

        Raises:
            UsageError: an option outside its range, or an empty prompt.
            ContextLengthError: the prompt is longer than the context.
            NumericalError: the model gave NaN or infinity.
            EngineClosed: after `close`.
        """
        with self.stream(prompt, evict=evict, cancel=cancel, **sampling) as stream:
            return stream.drain()

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        evict: str = "shift",
        cancel: threading.Event | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """As `generate`, piece by piece. The stream may be dropped at any time; its `result` is complete at the end."""
        params = self.defaults.updated(**sampling)
        tokens = self._ids(prompt)
        geometry = self._engine.geometry
        if params.max_tokens is None:
            room = DEFAULT_MAX_TOKENS if geometry.unbounded else max(geometry.context - len(tokens), 1)
            params = replace(params, max_tokens=min(room, DEFAULT_MAX_TOKENS))
        request = Request(
            prompt=tokens,
            params=params,
            tokenizer=self.tokenizer,
            eos_token_ids=self._eos,
            policy=raw_policy(evict),
            sinks=raw_sinks(geometry.context),
            continues_text=True,
            cancel=cancel,
        )
        return Stream(self._engine, self._engine.submit(request))

    def chat(
        self,
        system: str | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        evict: str = "shift",
        **sampling: Unpack[SamplingOptions],
    ) -> Conversation:
        """A conversation, with the model's chat template.

        Args:
            system: the system prompt.
            messages: what was said before.
            evict: "shift", "recompute" or "error", see `Conversation`.
            sampling: options of `SamplingParams` for every answer.

        Raises:
            TemplateError: the model has no chat template.
            UsageError: an option outside its range.
        """
        if self._render is None:
            raise self._no_template()
        return Conversation(
            self._engine,
            self._render,
            self.tokenizer,
            self._eos,
            self.defaults.updated(**sampling),
            system=system,
            messages=messages,
            evict=evict,
            identity=self._identity,
        )

    def restore(self, path: str | os.PathLike[str]) -> Conversation:
        """The conversation that `Conversation.save` wrote. Raises `InputError`, `ModelError`, `TemplateError`."""
        conversation = self.chat()
        conversation.load(path)
        return conversation

    def score(self, text_or_ids: str | Sequence[int]) -> scoring.Score:
        """How likely a text is, given its first token.

        Computed anew in a float32 cache, or in one of the `cache_dtype` that was asked for at `load`.

        Raises:
            UsageError: fewer than two tokens. ContextLengthError: more than the context holds.
            NumericalError: NaN or infinity.
        """
        return scoring.score(self._engine, self._ids(text_or_ids), self._score_dtype)

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logits float32 [T, vocab_size] after each of T token ids; computed as `score` is, with the same errors."""
        tokens = self._ids(token_ids)
        out = np.empty((len(tokens), self.config.vocab_size), np.float32)
        for first, rows in scoring.logits_of(self._engine, tokens, self._score_dtype):
            out[first : first + len(rows)] = rows
        return out

    def logits_in_steps(self, token_ids: Sequence[int], wanted: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """As `logits`, in steps of a few MiB: (row of the first, logits float32 [n, vocab_size]).

        Args:
            token_ids: T ids.
            wanted: a row; steps wholly before it are run and not given.
        """
        return scoring.logits_of(self._engine, self._ids(token_ids), self._score_dtype, wanted)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a finished conversation in the model's chat template. Raises `TemplateError`, `UsageError`."""
        if self._render is None:
            raise self._no_template()
        return self._render(messages, False)

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens spelled in it are recognised. Raises `UsageError`, `TokenizerError`."""
        return self.tokenizer.encode(check_text(text, "text"), add_special_tokens=add_special_tokens)

    def detokenize(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens spelled out. Raises `UsageError` for an id that is none."""
        return self.tokenizer.decode(list(ids))

    def close(self) -> None:
        """Free the model; answers under way end in `EngineClosed`. A second call does nothing."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _no_template(self) -> TemplateError:
        return TemplateError(
            "the model has no chat template",
            file=self._info.get("path"),
            hint="It is a base model, or its tokenizer_config.json is missing: use generate (`edgellm run`).",
        )

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            prompt = self.tokenize(prompt)
        elif isinstance(prompt, (bytes, Mapping)) or not isinstance(prompt, Iterable):
            raise UsageError("neither a text nor token ids", key="prompt", found=type(prompt).__name__)
        return check_prompt(prompt, self.config.vocab_size)

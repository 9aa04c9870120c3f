"""A backend, a tokenizer and a chat template of a few lines, which show every book-keeping error of an engine.

The fake cache really stores token ids in the rows that `CacheGeometry.row_of` names, and the fake runner reads them
back from there: its logits are a hash of every visible (layer, token, position), or, with `reply`, the next byte of a
scripted answer to the visible text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgellm.backends.interface import Batch, MemoryPlan, StepStopped, Stopped
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.errors import ModelError, UsageError
from edgellm.text.stream import TextStream

SPECIALS = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
BOS, EOS, USER, ASSISTANT, SYSTEM, END = range(256, 262)


@dataclass(frozen=True)
class FakeConfig:
    """The fields of `ModelConfig` that engine, API and terminal read."""

    model_type: str = "llama"
    hidden_size: int = 4
    intermediate_size: int = 8
    num_hidden_layers: int = 2
    num_attention_heads: int = 1
    num_key_value_heads: int = 1
    head_dim: int = 4
    vocab_size: int = 272
    max_position_embeddings: int = 4096
    tie_word_embeddings: bool = True
    layer_windows: tuple[int | None, ...] = (None, None)
    notes: tuple[str, ...] = ()


@dataclass
class FakeCache:
    """Token ids [layers, slots, rows], -1 where nothing was stored."""

    geometry: CacheGeometry
    num_slots: int
    nbytes: int = 0
    rows: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        layers = range(len(self.geometry.windows))
        self.rows = [np.full((self.num_slots, self.geometry.rows(layer)), -1, np.int64) for layer in layers]
        self.nbytes = sum(rows.nbytes for rows in self.rows)

    def stored(self, layer: int, state: SlotState) -> np.ndarray:
        """Numbers of the tokens that `layer` still holds."""
        window = self.geometry.ring_window(layer)
        return state.numbers(oldest=0 if window is None else max(0, state.end - self.geometry.rows(layer)))

    def copy_slot(self, source: SlotState, target: int) -> None:
        for rows in self.rows:
            rows[target] = rows[source.slot]

    def export_slot(self, state: SlotState) -> dict[str, np.ndarray]:
        out = {}
        for layer, rows in enumerate(self.rows):
            at = self.geometry.row_of(layer, state, self.stored(layer, state))
            out[f"layers.{layer}.keys"] = rows[state.slot, at]
            out[f"layers.{layer}.values"] = rows[state.slot, at]
        return out

    def import_slot(self, state: SlotState, tensors: Mapping[str, np.ndarray]) -> None:
        wanted = {f"layers.{layer}.{kind}" for layer in range(len(self.rows)) for kind in ("keys", "values")}
        if set(tensors) != wanted:
            raise ModelError("tensors of another cache", found=sorted(set(tensors) ^ wanted))
        for layer, rows in enumerate(self.rows):
            numbers = self.stored(layer, state)
            keys = tensors[f"layers.{layer}.keys"]
            if keys.shape != numbers.shape or keys.dtype != np.int64:
                raise ModelError("wrong shape or dtype", key=f"layers.{layer}.keys", found=f"{keys.dtype} {keys.shape}")
            rows[state.slot, self.geometry.row_of(layer, state, numbers)] = keys


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64 of uint64 values."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class FakeRunner:
    """Logits as hashes of what a token sees, or those of a scripted reply.

    Args:
        config: sizes.
        reply: from the visible text up to the last assistant marker (specials spelled out) to the answer.
        before_run: called with each batch, to count, to wait or to raise.
    """

    def __init__(
        self,
        config: FakeConfig | None = None,
        *,
        reply: Callable[[str], str] | None = None,
        before_run: Callable[[Batch], None] | None = None,
    ) -> None:
        self.config = config or FakeConfig()
        self.program = SimpleNamespace(config=self.config, ops=(), parameters=1234)
        self.weight_nbytes = 4096
        self.reply = reply
        self.before_run = before_run
        self.batches: list[Batch] = []
        self.closed = False
        self.poison: Callable[[np.ndarray, Batch], None] | None = None

    def describe(self) -> Mapping[str, Any]:
        return {"backend": "fake", "device": "cpu", "isa": "none", "threads": 1, "weights": "none"}

    def new_cache(self, geometry: CacheGeometry, num_slots: int) -> FakeCache:
        return FakeCache(geometry, num_slots)

    def close(self) -> None:
        self.closed = True

    def run(self, cache: FakeCache, batch: Batch, trace: Any = None, stopped: Stopped | None = None) -> np.ndarray:
        if self.closed:
            raise ValueError("run after close")
        self._check(cache, batch)
        if self.before_run is not None:
            self.before_run(batch)
        if stopped is not None and stopped():
            raise StepStopped
        self.batches.append(batch)
        wanted, out = set(batch.logits_rows.tolist()), []
        for s, state in enumerate(batch.states):
            start, stop = int(batch.seq_starts[s]), int(batch.seq_starts[s + 1])
            after = state.extended(stop - start)
            new = np.arange(state.end, after.end)
            for layer, rows in enumerate(cache.rows):
                rows[state.slot, cache.geometry.row_of(layer, after, new)] = batch.token_ids[start:stop]
            out += [self._logits(cache, after, state.end + t - start) for t in range(start, stop) if t in wanted]
        logits = np.array(out, np.float32).reshape(len(out), self.config.vocab_size)
        if self.poison is not None:
            self.poison(logits, batch)
        return logits

    def _check(self, cache: FakeCache, batch: Batch) -> None:
        counts = np.diff(batch.seq_starts)
        slots = [state.slot for state in batch.states]
        if not len(counts) == len(slots) == len(set(slots)) or not np.all(counts > 0):
            raise ValueError("a slot twice or a sequence without tokens")
        if np.any(counts > cache.geometry.chunk):
            raise ValueError(f"more than {cache.geometry.chunk} tokens of one sequence")
        for state, count in zip(batch.states, counts, strict=True):
            room = cache.geometry.room(state)
            if room is not None and count > room:
                raise ValueError(f"{count} tokens where {room} fit")
        if batch.token_ids.dtype != np.int32 or np.any((batch.token_ids < 0) | (batch.token_ids >= 272)):
            raise ValueError("token ids out of range")
        if np.any(np.diff(batch.logits_rows) <= 0):
            raise ValueError("logits_rows must ascend")

    def _visible(self, cache: FakeCache, state: SlotState, layer: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, positions) that token `number` sees in `layer`."""
        window = cache.geometry.windows[layer]
        numbers = state.numbers(end=number + 1, oldest=0 if window is None else max(0, number - window + 1))
        tokens = cache.rows[layer][state.slot, cache.geometry.row_of(layer, state, numbers)]
        return tokens, state.positions(numbers)

    def _logits(self, cache: FakeCache, state: SlotState, number: int) -> np.ndarray:
        if self.reply is not None:
            return self._scripted(self._visible(cache, state, 0, number)[0].tolist())
        total = np.uint64(0)
        with np.errstate(over="ignore"):
            for layer in range(len(cache.rows)):
                tokens, positions = self._visible(cache, state, layer, number)
                seen = tokens.astype(np.uint64) * np.uint64(1_000_003) + positions.astype(np.uint64)
                total += mix(seen * np.uint64(64) + np.uint64(layer)).sum(dtype=np.uint64)
            values = mix(total + np.arange(self.config.vocab_size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        return ((values >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)) * 8

    def _scripted(self, tokens: list[int]) -> np.ndarray:
        logits = np.zeros(self.config.vocab_size, np.float32)
        begin = len(tokens) - 1 - tokens[::-1].index(ASSISTANT) if ASSISTANT in tokens else -1
        answer = self.reply(FakeTokenizer().decode(tokens[: begin + 1])).encode()
        done = len(tokens) - 1 - begin
        logits[answer[done] if done < len(answer) else END] = 20.0
        return logits


class FakeBackend:
    """A `Backend` whose runner is a `FakeRunner`."""

    name = "fake"
    devices = ("cpu",)
    options: Mapping[str, tuple[str, ...]] = {}
    cache_dtypes = ("float32", "float16", "int8")

    def __init__(self, prefill_chunk: int = 16, **runner: Any) -> None:
        self.prefill_chunk = prefill_chunk
        self.runner = runner

    def unavailable(self) -> str | None:
        return None

    def load(
        self,
        program: Any,
        weights: Any,
        *,
        device: str | None = None,
        threads: int | None = None,
        progress: Any = None,
    ) -> FakeRunner:
        if progress is not None:
            progress(1, 2)
            progress(2, 2)
        return FakeRunner(**self.runner)

    def plan_bytes(
        self, program: Any, weights: Any, geometry: CacheGeometry, num_slots: int, *, device: str | None = None
    ) -> MemoryPlan:
        return MemoryPlan(4096, geometry.slot_nbytes * num_slots, 1024, 4096)


class FakeTokenizer:
    """Bytes are ids 0..255, the special tokens follow; ids 262.. of the model are padding."""

    kind = "fake"
    file = "fake"
    vocab_size = 256 + len(SPECIALS)
    bos_token_id = BOS
    eos_token_id = EOS
    special_tokens: Mapping[str, int] = {text: 256 + i for i, text in enumerate(SPECIALS)}
    special_ids = frozenset(range(256, vocab_size))

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        ids = [BOS] if add_special_tokens else []
        while text:
            special = next((s for s in SPECIALS if parse_special and text.startswith(s)), None)
            ids += [self.special_tokens[special]] if special else list(text[0].encode("utf-8", "replace"))
            text = text[len(special) if special else 1 :]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        stream = self.decoder(skip_special_tokens=skip_special_tokens)
        return "".join([*(stream.push(i) for i in ids), stream.finish()])

    def decoder(self, *, skip_special_tokens: bool = True) -> TextStream:
        return TextStream(self.piece_bytes, skip=self.special_ids if skip_special_tokens else frozenset())

    def piece_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < 272:
            raise UsageError("no such token id", found=token_id, allowed="0 to 271")
        if token_id >= 256:
            return SPECIALS[token_id - 256].encode() if token_id < self.vocab_size else b""
        return bytes([token_id])


_HEADERS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


def fake_render(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> list[int]:
    """A plain chat template: <s>, then role marker, content and <|end|> of each message; content is never parsed."""
    ids = [BOS]
    for message in messages:
        ids += [_HEADERS[message["role"]], *message["content"].encode(), END]
    return [*ids, ASSISTANT] if add_generation_prompt else ids


def merged_render(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> list[int]:
    """As Llama 2: <s> before every user message, the system prompt inside the first one, answers stripped."""
    ids: list[int] = []
    system = b""
    for message in messages:
        content = message["content"].encode()
        if message["role"] == "system":
            system = b"<<" + content + b">>"
        elif message["role"] == "user":
            ids += [BOS, USER, *system, *content, ASSISTANT]
            system = b""
        else:
            ids += [*content.strip(), END]
    return ids


def fake_llm(
    *, context: int = 256, slots: int = 1, chunk: int = 16, config: FakeConfig | None = None, **runner: Any
) -> Any:
    """An `edgellm.LLM` over the fakes; `runner` are arguments of `FakeRunner`."""
    from edgellm.api.llm import LLM
    from edgellm.engine.engine import Engine

    config = config or FakeConfig()
    fake = FakeRunner(config, **runner)
    geometry = CacheGeometry(context, config.layer_windows, 1, config.head_dim, min(chunk, context), "float32")
    info = {
        **fake.describe(),
        "path": "fake",
        "architecture": "llama",
        "model_type": config.model_type,
        "parameters": fake.program.parameters,
        "quantization": None,
        "context": context,
        "cache_dtype": geometry.dtype,
        "weight_bytes": fake.weight_nbytes,
        "cache_bytes": geometry.slot_nbytes * slots,
        "tokenizer": FakeTokenizer.kind,
        "chat_template": "fake",
        "notes": [],
    }
    return LLM(
        Engine(fake, fake.new_cache(geometry, slots), slots),
        FakeTokenizer(),
        render=fake_render,
        eos_token_ids=(EOS, END),
        info=info,
        identity="fake",
    )

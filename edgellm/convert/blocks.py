"""Running a model part by part: one decoder block, or a stretch of its ops, with only its own weights in memory.

Dimensions: N sequences of L tokens, T rows of a step, D hidden_size.

A *stretch* is a run of the fused program's ops. Its step takes some sequences' rows at once; attention sees whole
sequences because a step's rows go through them from the first token on, a chunk of each sequence at a time. Threads
share a step's sequences.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType

import numpy as np

from edgellm import backends
from edgellm.backends.interface import Batch, Runner
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.convert.activations import Activations
from edgellm.convert.patched import PatchedWeights
from edgellm.convert.rows import over_products, product_threads
from edgellm.errors import UsageError
from edgellm.model import Op, OpenedModel, Program, fuse
from edgellm.model.cut import cut_ops, layer_span

#: Tokens `span` of sequences `rows`, [n, t, ...]; asked from any thread.
Part = Callable[[slice, slice], np.ndarray]
#: Takes the result, float32 [n, t, width], for tokens `span` of sequences `rows`; called from any thread.
Put = Callable[[slice, slice, np.ndarray], None]
#: Called with (names of the linears that share an input, that input: float32 [T, in_features]), step after step.
Tap = Callable[[tuple[str, ...], np.ndarray], None]

_STEP_TOKENS = 2048  # enough rows for BLAS to run at its speed, few enough to stay small
_CHUNK = 128  # tokens of one sequence in a step: halves attention's work against whole sequences of 512


@dataclass(frozen=True)
class Steps:
    """How N sequences of L tokens are cut into steps: `sequences` at a time, `chunk` tokens of each."""

    sequences: int
    chunk: int

    @classmethod
    def of(cls, length: int, step_tokens: int = _STEP_TOKENS) -> Steps:
        chunk = min(length, _CHUNK)
        return cls(max(step_tokens // chunk, 1), chunk)


class BlockRunner:
    """Runs parts of a model on the reference backend.

    Args:
        opened: the model.
        weights: its weights with replacements; made where not given.
        step_tokens: T, about.
    """

    def __init__(
        self, opened: OpenedModel, weights: PatchedWeights | None = None, *, step_tokens: int = _STEP_TOKENS
    ) -> None:
        self.program: Program = fuse(opened.weights.program)
        self.weights = weights or PatchedWeights(opened.weights)
        self.step_tokens = step_tokens

    @property
    def num_layers(self) -> int:
        return self.program.config.num_hidden_layers

    def embed(self, token_ids: np.ndarray) -> np.ndarray:
        """Hidden states into layer 0, float32 [N, L, D], of token ids int32 [N, L]."""
        hidden = Activations(*token_ids.shape, self.program.buffers["x"])
        self.embed_into(token_ids, hidden)
        return hidden.read(0, len(token_ids))

    def embed_into(self, token_ids: np.ndarray, hidden: Activations) -> None:
        """As `embed`, for hidden states that need not fit into memory; of the table only rows in use become float32."""
        used, numbers = np.unique(token_ids, return_inverse=True)
        numbers = numbers.reshape(token_ids.shape).astype(np.int32)
        rows = _EmbeddingRows(self.weights.embedding_rows(used))
        at_once = Steps.of(token_ids.shape[1], self.step_tokens).sequences
        with Stretch(cut_ops(self.program, 0, self.first_op(0)), rows, self.step_tokens, None) as stretch:
            for first in range(0, len(numbers), at_once):
                hidden.write(first, stretch.run_ids(numbers[first : first + at_once]))

    def block(self, layer: int, hidden: np.ndarray, tap: Tap | None = None) -> np.ndarray:
        """Hidden states float32 [N, L, D] through decoder layer `layer`: the same shape.

        `tap` sees the input of every linear of the block.
        """
        with self.stretch(*layer_span(self.program, layer, layer + 1)) as stretch:
            return stretch.run({"x": hidden}, tap=tap)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Logits float32 [N, L, V] of the last block's hidden states [N, L, D]."""
        with self.stretch(self.first_op(self.num_layers), len(self.program.ops)) as stretch:
            return stretch.run({"x": hidden})

    def stretch(self, begin: int, end: int, result: str | None = None) -> Stretch:
        """Ops `begin` up to, not including, `end` of the fused program, loaded: a context manager.

        `result` is the buffer it gives, where that is not the last one written. Taps see the inputs of its linears,
        and of a linear (or lm_head) right behind it, whose weights it does not hold.
        """
        part = cut_ops(self.program, begin, end, result)
        following = self.program.ops[end] if end < len(self.program.ops) else None
        return Stretch(part, self.weights, self.step_tokens, following)

    def first_op(self, layer: int) -> int:
        """Index of the op that follows all ops of the layers below `layer`."""
        if layer == 0:
            return layer_span(self.program, 0, 1)[0]
        return layer_span(self.program, layer - 1, layer)[1]


class _EmbeddingRows:
    """Some rows of the embedding in place of all of them, for token ids that count these rows."""

    lm_head_is_embedding = True

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def embedding(self) -> np.ndarray:
        return self._rows


class Stretch:
    """A loaded part of a program; see `BlockRunner.stretch`."""

    def __init__(
        self, program: Program, weights: PatchedWeights | _EmbeddingRows, step_tokens: int, following: Op | None
    ) -> None:
        self.program = program
        self._runner = backends.find("reference").load(program, weights)
        self._step_tokens = step_tokens
        ops = program.ops if following is None else (*program.ops, following)
        self._linears = {index: op for index, op in enumerate(ops) if op.kind in ("linear", "logits")}

    def __enter__(self) -> Stretch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.close()

    def run_ids(self, token_ids: np.ndarray) -> np.ndarray:
        """The result for token ids int32 [N, L]: float32 [N, L, width]."""
        return self._result(token_ids.shape, _parts_of(token_ids), {}, None)

    def run(self, inputs: Mapping[str, np.ndarray], *, tap: Tap | None = None) -> np.ndarray:
        """The result for `inputs`, float32 [N, L, width] by buffer: float32 [N, L, width of the result]."""
        shape = next(iter(inputs.values())).shape[:2]
        for name, values in inputs.items():
            if values.shape[:2] != shape:
                raise UsageError("must have the same sequences", key=name, found=list(values.shape))
        return self._result(shape, None, {name: _parts_of(values) for name, values in inputs.items()}, tap)

    def run_all(self, inputs: Mapping[str, Activations], result: Activations | None, tap: Tap | None = None) -> None:
        """As `run`, for activations that need not fit into memory; `result` may be one of the inputs."""
        total, length, _ = next(iter(inputs.values())).shape
        parts = {name: activations.part for name, activations in inputs.items()}
        self._run((total, length), None, parts, None if result is None else result.put, tap)

    def _result(
        self, shape: tuple[int, int], token_ids: Part | None, inputs: Mapping[str, Part], tap: Tap | None
    ) -> np.ndarray:
        width = self.program.buffers.get(self.program.result, self.program.config.vocab_size)
        result = np.empty((*shape, width), np.float32)

        def put(rows: slice, span: slice, values: np.ndarray) -> None:
            result[rows, span] = values

        self._run(shape, token_ids, inputs, put, tap)
        return result

    def _run(
        self, shape: tuple[int, int], token_ids: Part | None, inputs: Mapping[str, Part], put: Put | None,
        tap: Tap | None,
    ) -> None:  # fmt: skip
        """Several passes side by side, each in a thread; `tap` is called in this one, in the order of the sequences."""
        total, length = shape
        steps = Steps.of(length, self._step_tokens)
        at_once = min(product_threads(), steps.sequences)  # of passes, which share a step's rows
        for first in range(0, total, steps.sequences):
            count = min(steps.sequences, total - first)
            bounds = [first + count * number // at_once for number in range(at_once + 1)]
            passes = [
                _Pass(self._runner, slice(a, b), length, steps.chunk, token_ids, inputs, put)
                for a, b in itertools.pairwise(bounds)
                if a < b
            ]
            for start in range(0, length, steps.chunk):
                span = slice(start, min(start + steps.chunk, length))
                step = partial(_Pass.step, span=span, taps=self._linears if tap is not None else {})
                for shown in over_products(step, passes):
                    for names, x in shown:
                        tap(names, x)


class _Pass:
    """Some sequences on their way through a stretch, a chunk of tokens of each at a time."""

    def __init__(
        self, runner: Runner, rows: slice, length: int, chunk: int, token_ids: Part | None,
        inputs: Mapping[str, Part], put: Put | None,
    ) -> None:  # fmt: skip
        self._runner, self._rows, self._token_ids, self._inputs, self._put = runner, rows, token_ids, inputs, put
        config = runner.program.config
        geometry = CacheGeometry(
            length, config.layer_windows, config.num_key_value_heads, config.head_dim, chunk, "float32"
        )
        count = rows.stop - rows.start
        self._cache = runner.new_cache(geometry, count)
        self._states = tuple(SlotState(slot) for slot in range(count))

    def step(self, span: slice, taps: Mapping[int, Op]) -> list[tuple[tuple[str, ...], np.ndarray]]:
        """Run tokens `span` and store the result; what the linears of `taps` (by index of the op) are given."""
        count, tokens = len(self._states), span.stop - span.start
        ids = np.zeros((count, tokens), np.int32) if self._token_ids is None else self._token_ids(self._rows, span)
        inputs = {}
        for name, part in self._inputs.items():
            x = part(self._rows, span)
            x = x if x.flags.owndata else x.copy()  # the result may go where a view looks at, before taps have looked
            inputs[name] = x.reshape(count * tokens, -1)
        batch = Batch(
            np.ascontiguousarray(ids, np.int32).reshape(-1),
            np.arange(count + 1, dtype=np.int32) * tokens,
            tuple(replace(state, end=span.start) for state in self._states),
            np.arange(count * tokens, dtype=np.int32),
            inputs,
        )
        shown: list[tuple[tuple[str, ...], np.ndarray]] = []

        def trace(index: int, buffers: Mapping[str, np.ndarray]) -> None:
            following = taps.get(index + 1)  # its input is whole before it runs, and may be gone after
            if following is not None:
                shown.append((following.weights, buffers[following.inputs[0]]))

        values = self._runner.run(self._cache, batch, trace if taps else None)
        if self._put is not None:
            self._put(self._rows, span, values.reshape(count, tokens, -1))
        return shown


def _parts_of(values: np.ndarray) -> Part:
    return lambda rows, span: values[rows, span]

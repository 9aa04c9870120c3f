"""A loaded model on a GPU: a batch becomes steps, a decode step one graph that is replayed for every token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgellm.backends.cuda.answer import Answer, chosen_tokens
from edgellm.backends.cuda.cache import CudaCache
from edgellm.backends.cuda.device import Device
from edgellm.backends.cuda.linears import GEMV_TOKENS
from edgellm.backends.cuda.lower import Model
from edgellm.backends.cuda.profile import LaunchTime, launch_times, timed, weight_bytes
from edgellm.backends.cuda.records import (
    Part,
    ids_in,
    is_decode,
    parts_of,
    records_in,
    write_choice,
    write_decode_records,
    write_records,
)
from edgellm.backends.cuda.space import View
from edgellm.backends.cuda.steps import Steps, Wanted
from edgellm.backends.cuda.stream import Stream
from edgellm.backends.interface import Batch, Choice, Chosen, Stopped, Trace
from edgellm.backends.slots import CacheGeometry
from edgellm.errors import EngineClosed, UsageError

#: Steps of more tokens may take longer than a person waits for Ctrl-C.
_LONG_STEP = 16
#: What comes back of a decode step that gives tokens alone.
TOKENS = Wanted(logits=False, tokens=True)
LIMITED = Wanted(logits=False, tokens=True, limited=True)
_NO_LOGITS = np.empty((0, 0), np.float32)


class CudaRunner:
    """See `interface.Runner`.

    Args:
        device, stream: of the model.
        model: its program, weights, scratch and kernels.
        precision: what `describe` says of it.
    """

    #: See `interface.ChoosingRunner`.
    draws = True

    def __init__(self, device: Device, stream: Stream, model: Model, precision: Mapping[str, Any]) -> None:
        self.program = model.program
        self.weight_nbytes = model.weights.nbytes
        self._device, self._stream, self._precision = device, stream, precision
        self._token_bytes = weight_bytes(model.weights.matrices)
        self._model: Model | None = model
        self._records = records_in(model.space.host.array)
        self._ids = ids_in(model.space.host.array)
        self._host = memoryview(model.space.host.array)
        self._records[:] = 0
        self._has_logits = any(op.kind == "logits" for op in model.program.ops)
        self._is_whole = self._has_logits and model.program.ops[0].kind != "inputs"
        config, buffers = model.program.config, model.space.buffers
        self._width = config.vocab_size if self._has_logits else buffers[model.program.result].width

    def describe(self) -> Mapping[str, Any]:
        """What runs where."""
        found = self._device.properties
        return {
            "backend": "cuda",
            "device": f"cuda:{found.index} {found.name}",
            "isa": found.architecture,
            "threads": None,
            "weights": "packed",
            **self._precision,
            "work": {"weight_bytes": self._token_bytes, "integer_operations": 0},
        }

    def new_cache(self, geometry: CacheGeometry, num_slots: int) -> CudaCache:
        """A cache with all slots empty. Raises `OutOfMemoryError`, `UsageError`."""
        return CudaCache(self._device, self._stream, geometry, num_slots)

    def run(
        self, cache: CudaCache, batch: Batch, trace: Trace | None = None, stopped: Stopped | None = None
    ) -> np.ndarray:
        """One step; see `interface.Runner`."""
        model = self._open(cache)
        if trace is not None:
            return self._traced(model, cache, batch, trace)
        if self._is_decode(batch):
            return self._run_decode(cache.steps, batch)
        return self._run_parts(cache, replace(batch, choices=()), stopped).logits

    def _run_parts(self, cache: CudaCache, batch: Batch, stopped: Stopped | None) -> Answer:
        answer = Answer(batch, self._has_logits, self._width)
        with self._device:
            for part in parts_of(batch, self._open(cache).space.rows):
                write_records(self._records, part, batch.token_ids)
                choices = answer.choices(part)
                for own, choice in choices.items():
                    write_choice(self._host, own if part.decode else 0, choice)
                self._put_inputs(part, batch)
                if part.decode:
                    self._decode(cache.steps, part, choices, answer)
                else:
                    self._ids[: len(part.rows)] = batch.token_ids[part.rows]
                    self._prompt(cache.steps, part, choices, answer, stopped)
        return answer

    def _run_decode(self, steps: Steps, batch: Batch) -> np.ndarray:
        """The everyday step, without a detour."""
        rows = len(batch.states)
        with self._device:
            write_decode_records(self._host, batch)
            steps.decode(rows)
            self._stream.wait()
        return steps.host_logits(rows).copy()

    def choose(self, cache: CudaCache, batch: Batch, stopped: Stopped | None = None) -> Chosen:
        """One step whose tokens are chosen on the device where `batch.choices` says how: four bytes of each come back.

        Raises:
            UsageError: choices that are not one a row of `logits_rows`, or that stand elsewhere than `Batch` allows.
            Else as `run`.
        """
        self._open(cache)
        if self._is_decode(batch) and len(batch.choices) == len(batch.states) and None not in batch.choices:
            return self._choose_decode(cache.steps, batch)
        answer = self._run_parts(cache, batch, stopped)
        return Chosen(answer.tokens, answer.logits)

    def _choose_decode(self, steps: Steps, batch: Batch) -> Chosen:
        """The everyday step, without a detour."""
        rows, limited = len(batch.states), False
        with self._device:
            write_decode_records(self._host, batch)
            for row, choice in enumerate(batch.choices):
                write_choice(self._host, row, choice)
                limited = limited or choice.limited
            steps.decode(rows, LIMITED if limited else TOKENS)
            self._stream.wait()
        return Chosen(chosen_tokens(steps.host_tokens(rows)), _NO_LOGITS)

    def _is_decode(self, batch: Batch) -> bool:
        return self._is_whole and is_decode(batch) and len(batch.logits_rows) == len(batch.states)

    def profile(self, cache: CudaCache, batch: Batch) -> list[LaunchTime]:
        """One step of one kind, tokens of several sequences or a prompt, as `run` does it but without a graph, and what
        each launch took."""
        model = self._open(cache)
        times: list[LaunchTime] = []
        with self._device:
            for part in parts_of(batch, model.space.rows):
                write_records(self._records, part, batch.token_ids)
                self._ids[: len(part.rows)] = batch.token_ids[part.rows]
                self._stream.upload(model.space.record, self._records)
                self._stream.upload(model.space.ids, self._ids)
                calls = cache.steps.calls(len(part.rows), decode=part.decode)
                seconds = timed(self._stream, model.kernels, calls)
                behind = part.states if part.decode else [part.states[0].extended(len(part.rows) - 1)]
                sizes = (self.program, model.weights, cache.geometry, behind)
                times += launch_times(*sizes, calls, seconds)
        return times

    def device_seconds(self, cache: CudaCache, rows: int, wanted: Wanted) -> float:
        """What the device takes to do the last decode step of `rows` sequences again."""
        self._open(cache)
        return self._stream.time(lambda: cache.steps.decode(rows, wanted))

    def _open(self, cache: CudaCache) -> Model:
        """The model, with the cache's steps made ready. Raises `EngineClosed`."""
        if self._model is None:
            raise EngineClosed("the model was closed")
        if cache.steps is None:
            cache.steps = Steps(self._device, self._stream, self._model, cache.places)
        return self._model

    def _traced(self, model: Model, cache: CudaCache, batch: Batch, trace: Trace) -> np.ndarray:
        parts = list(parts_of(batch, model.space.rows))
        if len(parts) != 1:
            what, allowed = "a trace on this backend takes one step", "one prompt, or a token of each sequence"
            raise UsageError(what, key="batch", found=f"{len(parts)} steps", allowed=allowed)
        (part,) = parts
        with self._device:
            write_records(self._records, part, batch.token_ids)
            self._ids[: len(part.rows)] = batch.token_ids[part.rows]
            self._stream.upload(model.space.record, self._records)
            self._stream.upload(model.space.ids, self._ids)
            self._put_inputs(part, batch)
            steps, wanted = cache.steps, part.wanted.tolist()
            logits = steps.traced(len(part.rows), wanted, decode=part.decode, trace=trace)
            return self._result_rows(len(part.rows)) if logits is None else logits

    def close(self) -> None:
        """Free the weights and the scratch."""
        if self._model is not None:
            self._model.weights.close()
            self._model.space.close()
        self._model = None

    def _decode(self, steps: Steps, part: Part, choices: Mapping[int, Choice], answer: Answer) -> None:
        rows, free = len(part.rows), [own for own in part.wanted.tolist() if own not in choices]
        steps.decode(rows, _wanted(choices, bool(free) or not choices))
        self._stream.wait()
        if not self._has_logits:
            answer.put_logits(part.rows, self._result_rows(rows))
            return
        answer.put_tokens(part, list(choices), steps.host_tokens(rows)[list(choices)])
        answer.put_logits(part.rows[free], steps.host_logits(rows)[free])

    def _prompt(
        self, steps: Steps, part: Part, choices: Mapping[int, Choice], answer: Answer, stopped: Stopped | None
    ) -> None:
        rows = len(part.rows)
        steps.prompt(rows)
        if stopped is not None and rows > _LONG_STEP:
            self._stream.wait_or_stop(stopped)
        for first, count in _runs(part.wanted.tolist()):
            steps.logits(first, count, _wanted(choices, not choices))
            self._stream.wait()
            if choices:
                answer.put_tokens(part, [first], steps.host_tokens(1))
            else:
                answer.put_logits(part.rows[first : first + count], steps.host_logits(count))
        self._stream.wait()  # the pinned ids and records are free again
        if not self._has_logits:
            answer.put_logits(part.rows, self._result_rows(rows))

    def _put_inputs(self, part: Part, batch: Batch) -> None:
        """What the caller gives to a program that was cut out of another."""
        first = self.program.ops[0]
        if first.kind != "inputs":
            return
        for name in first.outputs:
            given, view = batch.inputs.get(name), self._buffer(name)
            shape = (len(batch.token_ids), view.width)
            if given is None or given.dtype != np.float32 or given.shape != shape:
                found = "nothing" if given is None else f"{given.dtype} {list(given.shape)}"
                raise UsageError("does not fit the program", key=name, found=found, allowed=f"float32 {list(shape)}")
            self._stream.upload(view.address, given[part.rows])
            self._stream.wait()

    def _buffer(self, name: str) -> View:
        if self._model is None:
            raise EngineClosed("the model was closed")
        return self._model.space.buffers[name]

    def _result_rows(self, rows: int) -> np.ndarray:
        view = self._buffer(self.program.result)
        found = np.empty((rows, view.stride), np.float32)
        self._stream.download(found, view.address)
        self._stream.wait()
        return found[:, : view.width]


def _wanted(choices: Mapping[int, Choice], logits: bool) -> Wanted:
    """What comes back where some rows' tokens are chosen, and of others logits are wanted or not."""
    return Wanted(logits, bool(choices), any(choice.limited for choice in choices.values()))


def _runs(rows: list[int]) -> list[tuple[int, int]]:
    """Rows, ascending, as (first, count) of neighbours, at most `GEMV_TOKENS` each."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs and row == sum(runs[-1]) and runs[-1][1] < GEMV_TOKENS:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((row, 1))
    return runs

"""A loaded model on the CPU: scratch allocated once, a step prepared in NumPy and walked by a team of threads."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from edgellm.backends.cpu.arena import aligned_zeros
from edgellm.backends.cpu.attention_plan import kinds_of
from edgellm.backends.cpu.cache import CpuCache
from edgellm.backends.cpu.layout import round_up
from edgellm.backends.cpu.linear_tiles import STAGE
from edgellm.backends.cpu.lower import Lowered, lower
from edgellm.backends.cpu.native import Call, Native
from edgellm.backends.cpu.packed import PackedWeights
from edgellm.backends.cpu.profile import RowTime, Stopwatch, row_times, work_of
from edgellm.backends.cpu.scratch import attention_scratch, partial_width, store_scratch
from edgellm.backends.cpu.step import StepArrays
from edgellm.backends.cpu.team import Team
from edgellm.backends.interface import Batch, Chosen, StepStopped, Stopped, Trace
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.errors import EngineClosed, UsageError
from edgellm.model.program import Program
from edgellm.simd import TARGET

#: How long tokens are chosen ahead: not as long as a person sees, and less than makes a step long.
_AHEAD_SECONDS = 0.04
#: Steps of more tokens may take longer than a person waits for Ctrl-C, and so may one behind a step of so many seconds.
_LONG_STEP = 16
_LONG_SECONDS = 0.05
_NO_TIMES = np.zeros(0, np.int64)

_NO_LOGITS, _NO_ROWS = np.zeros(1, np.float32), np.zeros((0, 0), np.float32)
_NO_BYTES = np.zeros(1, np.uint8)
#: Where the logits stand in the walker's `space`.
_LOGITS = 1

walk = Native("edgellm.backends.cpu.walker", "walk", threaded=True)


class _Places(NamedTuple):
    """Which of the walker's arguments change from step to step, counted through its tuples."""

    logits: int
    cache: int
    planes: int
    first: int
    last: int
    ahead: int
    times: int

    @classmethod
    def of(cls, groups: Sequence[Any]) -> _Places:
        """Those behind `groups`: model, space, cache, step, layer_kinds."""
        lengths = [len(group) if isinstance(group, tuple) else 1 for group in groups]
        model, space = lengths[:2]
        return cls(model + _LOGITS, model + space, *range(sum(lengths), sum(lengths) + 5))


class CpuRunner:
    """A program, its packed weights and a team.

    Args:
        program: fused or plain.
        packed: its weights.
        team: closed with the runner.
        max_tokens: of a step.
        two_planes_up_to: steps of up to so many tokens give activations 16 bits, in two planes.
        precision: what `describe` says of it beside the lm_head.
    """

    #: See `interface.ChoosingRunner`: drawing is left to the engine.
    draws = False

    def __init__(
        self,
        program: Program,
        packed: PackedWeights,
        team: Team,
        max_tokens: int,
        two_planes_up_to: int,
        precision: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.program = program
        self.weight_nbytes = packed.nbytes
        self._precision = {**packed.describe_head(), **precision}
        self._team = team
        self._two_planes_up_to = two_planes_up_to
        self._lowered = lower(program, packed, max_tokens, planes=2)
        config = program.config
        groups = config.num_attention_heads // config.num_key_value_heads
        work, wide = attention_scratch(config.head_dim, groups)
        floats, stage = store_scratch(config.head_dim)
        shape = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            round_up(max(work, floats), 16),
            round_up(max(wide, stage), 64),
        )
        self._shape = np.array(shape, np.int64)
        self._model = (self._lowered.table, packed.data, self._lowered.permutations, self._shape)
        self._space = _Space(self._lowered, self._shape, team.threads)
        self._step = StepArrays(self._lowered.ropes, groups)
        self._partial_floats = config.num_attention_heads * partial_width(config.head_dim)
        self._call: Call | None = None
        self._places: _Places  # of the call
        self._laid_out: tuple[Any, Any] = (None, None)
        self._cache: weakref.ref[CpuCache] | None = None
        self._all_rows = (0, len(self._lowered.table))
        self._step_seconds, self._token_seconds = 0.0, math.inf

    def describe(self) -> Mapping[str, Any]:
        """What runs where."""
        return {
            "backend": "cpu",
            "device": "cpu",
            "isa": TARGET.isa,
            "threads": self._team.threads,
            "weights": "packed",
            **self._precision,
            "work": asdict(work_of(self._lowered.table)),
        }

    def new_cache(self, geometry: CacheGeometry, num_slots: int) -> CpuCache:
        """A cache with all slots empty. Raises `OutOfMemoryError`."""
        cache = CpuCache(geometry, num_slots)
        cache.ready_first_rows()
        return cache

    def warm_up(self) -> None:
        """Compile all kernels or read them from their cache: by preparing a step, without native code by running it."""
        config = self.program.config
        windows = config.layer_windows
        geometry = CacheGeometry(1, windows, config.num_key_value_heads, config.head_dim, 1)
        batch = Batch.of([(SlotState(0), [0], "last")])
        first, widths = self.program.ops[0], self.program.buffers
        if first.kind == "inputs":
            batch = replace(batch, inputs={name: np.zeros((1, widths[name]), np.float32) for name in first.outputs})
        cache = CpuCache(geometry, 1)
        if not self._prepare(cache, batch)[0].native:
            self.run(cache, batch)

    def close(self) -> None:
        """End the threads and free the weights."""
        self._team.close()
        self._model = self._space = self._call = None

    def run(
        self, cache: CpuCache, batch: Batch, trace: Trace | None = None, stopped: Stopped | None = None
    ) -> np.ndarray:
        """One step; see `interface.Runner`. Returns logits float32 [R, V]."""
        call, logits = self._prepare(cache, batch)
        if trace is None:
            self._timed_walk(call, len(batch.token_ids), 0, stopped)
            return logits
        rows_of = self._lowered.table["program_op"]
        for index in range(len(self.program.ops)):
            first, last = np.searchsorted(rows_of, [index, index + 1])
            self._walk(call, (int(first), int(last)))
            trace(index, self._buffers(self._space.act, len(batch.token_ids)) | {"logits": logits})
        return logits

    def choose(self, cache: CpuCache, batch: Batch, stopped: Stopped | None = None) -> Chosen:
        """One step that gives tokens where `batch.choices` says how; see `interface.ChoosingRunner`."""
        call, logits = self._prepare(cache, batch)
        ahead = min(batch.ahead, int(_AHEAD_SECONDS / self._token_seconds) - 1)
        if ahead > 0 and (ahead := self._step.may_go_on(ahead)) > 0:
            self._timed_walk(call, 1, ahead, stopped)
            return Chosen(self._step.gone_on(ahead), _NO_ROWS)
        self._timed_walk(call, len(batch.token_ids), 0, stopped)
        begin = self._lowered.tokens
        tokens = self._space.act[begin : begin + len(logits)].astype(np.int64)
        if None not in batch.choices:
            return Chosen(tokens, _NO_ROWS)
        others = [choice is None for choice in batch.choices]
        tokens[others] = -1
        return Chosen(tokens, logits[others])

    def _timed_walk(self, call: Call, tokens: int, ahead: int, stopped: Stopped | None) -> None:
        """The whole table, and what it took: long steps are run so that Ctrl-C and `stopped` are answered."""
        long = tokens > _LONG_STEP or self._step_seconds > _LONG_SECONDS
        began = time.perf_counter()
        self._walk(call, long=long, ahead=ahead, stopped=stopped)
        seconds = time.perf_counter() - began
        self._step_seconds = seconds / (1 + ahead)
        self._token_seconds = self._step_seconds if tokens == 1 else math.inf

    def profile(self, cache: CpuCache, batch: Batch) -> list[RowTime]:
        """One step, as `run` does it, and what each row of the op table took.

        Raises:
            BackendUnavailable: this processor has no clock that kernels can read.
        """
        call, _ = self._prepare(cache, batch)
        watch = Stopwatch(len(self._lowered.table))
        self._walk(call, times=watch.times)
        return row_times(self._lowered.table, watch.seconds(), cache, batch)

    def _prepare(self, cache: CpuCache, batch: Batch) -> tuple[Call, np.ndarray]:
        """The walker's call for a step, and the logits that it will fill."""
        rows, vocab = len(batch.logits_rows), self.program.config.vocab_size
        logits = np.empty((rows, vocab) if rows else (0, 0), np.float32)  # fresh, since the caller keeps them
        self._put_inputs(batch)
        step = self._step.fill(cache.geometry, batch)
        space = self._space.arrays(self._step.partials * self._partial_floats)
        planes = 2 if len(batch.token_ids) <= self._two_planes_up_to else 1
        call, flat = self._call, logits.reshape(-1) if rows else _NO_LOGITS
        if call is not None and self._cache() is cache and self._laid_out[0] is step and self._laid_out[1] is space:
            call.replace(self._places.logits, flat)
            call.replace(self._places.planes, planes)
            return call, logits
        held = (cache.data, cache.layout, cache.storage)
        space_and_logits = (*space[:_LOGITS], flat, *space[_LOGITS:])
        groups = (self._model, space_and_logits, held, step, kinds_of(cache.geometry))
        arguments = (*groups, planes, *self._all_rows, 0, _NO_TIMES, self._team.sync)
        if call is None:
            call = self._call = walk.prepare(*arguments)
            self._places = _Places.of(groups)
        else:
            call.update(*arguments)
        self._laid_out = (step, space)
        self._cache = weakref.ref(cache, partial(_forget, call, self._places.cache))
        return call, logits

    def _put_inputs(self, batch: Batch) -> None:
        """What the caller gives to a program that was cut out of another. Raises `UsageError`."""
        act = self._space.act
        first, tokens = self.program.ops[0], len(batch.token_ids)
        for name in first.outputs if first.kind == "inputs" else ():
            given, shape = batch.inputs.get(name), (tokens, self.program.buffers[name])
            if given is None or given.dtype != np.float32 or given.shape != shape:
                found = "nothing" if given is None else f"{given.dtype} {list(given.shape)}"
                raise UsageError("does not fit the program", key=name, found=found, allowed=f"float32 {list(shape)}")
            offset = self._lowered.offsets[name]
            act[offset : offset + given.size] = given.reshape(-1)

    def _walk(
        self,
        call: Call,
        rows: tuple[int, int] | None = None,
        *,
        long: bool = False,
        ahead: int = 0,
        times: np.ndarray = _NO_TIMES,
        stopped: Stopped | None = None,
    ) -> None:
        """Rows of the table, all unless told, in all threads.

        Raises:
            StepStopped: `stopped` said so.
            EngineClosed: the team was closed.
        """
        first, last = rows or self._all_rows
        call.replace(self._places.first, first)
        call.replace(self._places.last, last)
        call.replace(self._places.ahead, ahead)
        call.replace(self._places.times, times)
        if not self._team.run(call.function, call.address, interruptible=long, stopped=stopped):
            if stopped is not None and stopped():
                raise StepStopped
            raise EngineClosed("the step was stopped before its end")

    def _buffers(self, act: np.ndarray, tokens: int) -> dict[str, np.ndarray]:
        offsets, widths = self._lowered.offsets, self.program.buffers
        return {
            name: act[offsets[name] : offsets[name] + tokens * width].reshape(tokens, width)
            for name, width in widths.items()
        }


def _forget(call: Call, place: int, _: object) -> None:
    """Let the bytes of a cache go with it: the call must not keep them."""
    call.replace(place, _NO_BYTES)


class _Space:
    """Scratch of all steps; only partial results are sized by the step."""

    def __init__(self, lowered: Lowered, shape: np.ndarray, threads: int) -> None:
        self.act = aligned_zeros(lowered.act_floats, np.float32)
        self._quads = aligned_zeros(lowered.quads, np.int32)
        self._xs = aligned_zeros(lowered.xs, np.float32)
        self._stage = aligned_zeros(threads * STAGE, np.float32)
        self._work = aligned_zeros(threads * int(shape[3]), np.float32)
        self._wide = aligned_zeros(threads * int(shape[4]), np.uint8)
        self._partials = aligned_zeros(1, np.float32)
        self._arrays: tuple[np.ndarray, ...] = ()

    def arrays(self, partials: int) -> tuple[np.ndarray, ...]:
        """In the order of `walker.py`, without the logits; the same tuple as before unless one had to be made anew."""
        if len(self._partials) < partials or not self._arrays:
            self._partials = aligned_zeros(max(partials, 1), np.float32)
            self._arrays = (self.act, self._quads, self._xs, self._stage, self._partials, self._work, self._wide)
        return self._arrays

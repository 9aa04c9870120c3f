"""A loaded model on the CPU: scratch allocated once, a step prepared in NumPy and walked by a team of threads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from edgellm.backends.cpu.arena import aligned_zeros
from edgellm.backends.cpu.attention_plan import KindPlan, RopeTables, StepPlan, kinds_of, plan_step, rope_tables
from edgellm.backends.cpu.cache import CpuCache
from edgellm.backends.cpu.layout import round_up
from edgellm.backends.cpu.linear_tiles import STAGE
from edgellm.backends.cpu.lower import Lowered, lower
from edgellm.backends.cpu.native import Call, Native
from edgellm.backends.cpu.packed import PackedWeights
from edgellm.backends.cpu.profile import RowTime, Stopwatch, row_times, work_of
from edgellm.backends.cpu.scratch import attention_scratch, partial_width, store_scratch
from edgellm.backends.cpu.team import Team
from edgellm.backends.interface import Batch, StepStopped, Stopped, Trace
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.errors import EngineClosed, UsageError
from edgellm.model.program import Program
from edgellm.simd import TARGET

#: Steps of more tokens may take longer than a person waits for Ctrl-C, and so may one behind a step of so many seconds.
_LONG_STEP = 16
_LONG_SECONDS = 0.05
_NO_TIMES = np.zeros(0, np.int64)

walk = Native("edgellm.backends.cpu.walker", "walk", threaded=True)


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
        self._groups = groups
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
        self._call: Call | None = None
        self._step_seconds = 0.0

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
        if not self._laid_out(self._prepare(cache, batch)[0], 0, len(self._lowered.table), _NO_TIMES).native:
            self.run(cache, batch)

    def close(self) -> None:
        """End the threads and free the weights."""
        self._team.close()
        self._model = self._space = self._call = None

    def run(
        self, cache: CpuCache, batch: Batch, trace: Trace | None = None, stopped: Stopped | None = None
    ) -> np.ndarray:
        """One step; see `interface.Runner`. Returns logits float32 [R, V]."""
        fixed, logits = self._prepare(cache, batch)
        if trace is None:
            long = len(batch.token_ids) > _LONG_STEP or self._step_seconds > _LONG_SECONDS
            began = time.perf_counter()
            self._walk(fixed, 0, len(self._lowered.table), long=long, stopped=stopped)
            self._step_seconds = time.perf_counter() - began
            return logits
        rows_of = self._lowered.table["program_op"]
        for index in range(len(self.program.ops)):
            first, last = np.searchsorted(rows_of, [index, index + 1])
            self._walk(fixed, int(first), int(last), long=False)
            trace(index, self._buffers(fixed[1][0], len(batch.token_ids)) | {"logits": logits})
        return logits

    def profile(self, cache: CpuCache, batch: Batch) -> list[RowTime]:
        """One step, as `run` does it, and what each row of the op table took.

        Raises:
            BackendUnavailable: this processor has no clock that kernels can read.
        """
        fixed, _ = self._prepare(cache, batch)
        table = self._lowered.table
        watch = Stopwatch(len(table))
        self._walk(fixed, 0, len(table), long=False, times=watch.times)
        return row_times(table, watch.seconds(), cache, batch)

    def _prepare(self, cache: CpuCache, batch: Batch) -> tuple[tuple[Any, ...], np.ndarray]:
        """The arguments of the walk, and the logits that it will fill."""
        plan = plan_step(cache.geometry, batch, self._groups)
        space = self._space.arrays(len(batch.logits_rows) * self.program.config.vocab_size, self._partials(plan))
        step = self._step(batch, plan)
        self._put_inputs(space[0], batch)
        held = (cache.data, cache.layout, cache.storage)
        planes = 2 if len(batch.token_ids) <= self._two_planes_up_to else 1
        fixed = (self._model, space, held, step, kinds_of(cache.geometry), planes)
        logits = (
            space[1].reshape(len(batch.logits_rows), -1) if len(batch.logits_rows) else np.zeros((0, 0), np.float32)
        )
        return fixed, logits

    def _put_inputs(self, act: np.ndarray, batch: Batch) -> None:
        """What the caller gives to a program that was cut out of another. Raises `UsageError`."""
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
        fixed: tuple[Any, ...],
        first: int,
        last: int,
        *,
        long: bool,
        times: np.ndarray = _NO_TIMES,
        stopped: Stopped | None = None,
    ) -> None:
        """Rows of the table in all threads. Raises `StepStopped`, and `EngineClosed` where the team was closed."""
        call = self._laid_out(fixed, first, last, times)
        if not self._team.run(call.function, call.address, interruptible=long, stopped=stopped):
            if stopped is not None and stopped():
                raise StepStopped
            raise EngineClosed("the step was stopped before its end")

    def _laid_out(self, fixed: tuple[Any, ...], first: int, last: int, times: np.ndarray) -> Call:
        """The call of the walker, with these arguments."""
        arguments = (*fixed, first, last, times, self._team.sync)
        if self._call is None:
            self._call = walk.prepare(*arguments)
        else:
            self._call.update(*arguments)
        return self._call

    def _buffers(self, act: np.ndarray, tokens: int) -> dict[str, np.ndarray]:
        offsets, widths = self._lowered.offsets, self.program.buffers
        return {
            name: act[offsets[name] : offsets[name] + tokens * width].reshape(tokens, width)
            for name, width in widths.items()
        }

    def _partials(self, plan: StepPlan) -> int:
        return plan.partials * int(self._shape[0]) * partial_width(int(self._shape[2]))

    def _step(self, batch: Batch, plan: StepPlan) -> tuple[np.ndarray, ...]:
        bounds, joined = _joined_kinds(plan.kinds)
        tables = [rope_tables(rope, plan) for rope in self._lowered.ropes]
        counts = np.array([len(batch.token_ids), len(batch.logits_rows), batch.exact], np.int64)
        cos, sin, ropes = _joined_tables(tables)
        return (counts, batch.token_ids, batch.logits_rows, plan.tokens, *joined, bounds, cos, sin, ropes)


class _Space:
    """Scratch of all steps; only logits and partial results are sized by the step."""

    def __init__(self, lowered: Lowered, shape: np.ndarray, threads: int) -> None:
        self._act = aligned_zeros(lowered.act_floats, np.float32)
        self._quads = aligned_zeros(lowered.quads, np.int32)
        self._xs = aligned_zeros(lowered.xs, np.float32)
        self._stage = aligned_zeros(threads * STAGE, np.float32)
        self._work = aligned_zeros(threads * int(shape[3]), np.float32)
        self._wide = aligned_zeros(threads * int(shape[4]), np.uint8)
        self._partials = aligned_zeros(1, np.float32)

    def arrays(self, logits: int, partials: int) -> tuple[np.ndarray, ...]:
        """In the order of `walker.py`; the logits are a fresh array, since the caller keeps them."""
        if len(self._partials) < partials:
            self._partials = aligned_zeros(partials, np.float32)
        fresh = np.empty(max(logits, 1), np.float32)[:logits] if logits else np.empty(1, np.float32)
        return (self._act, fresh, self._quads, self._xs, self._stage, self._partials, self._work, self._wide)


def _joined_kinds(kinds: tuple[KindPlan, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The rows of `bounds` (`walker.py`), and all kinds' runs, items and merges one behind the other."""
    # A decode step waits for this: one kind, as nearly all models have, is spared the joining.
    parts = [[kind.runs for kind in kinds], [kind.items for kind in kinds], [kind.merges for kind in kinds]]
    rows = []
    begins = [0, 0, 0]
    for kind in kinds:
        ends = [begin + len(part) for begin, part in zip(begins, (kind.runs, kind.items, kind.merges), strict=True)]
        rows.append((begins[0], ends[0], begins[1], ends[1], begins[2], ends[2], kind.tiles))
        begins = ends
    return np.array(rows, np.int64), [part[0] if len(part) == 1 else np.concatenate(part) for part in parts]


def _joined_tables(tables: list[RopeTables]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All rotations' tables one behind the other, and the rows of `ropes`."""
    if not tables:
        nothing = np.zeros(1, np.float32)
        return nothing, nothing, np.zeros((1, 4), np.int64)
    rows, begin = [], 0
    for table in tables:
        rows.append((table.half, begin + table.by_position, begin + table.by_number, begin + table.by_turn))
        begin += len(table.cos)
    if len(tables) == 1:
        return tables[0].cos, tables[0].sin, np.array(rows, np.int64)
    cos, sin = (np.concatenate([getattr(table, name) for table in tables]) for name in ("cos", "sin"))
    return cos, sin, np.array(rows, np.int64)

"""The narrow waist: arrays in, logits out. The engine never sees a kernel, a kernel never sees a sequence.

Dimensions: S sequences, T tokens of all sequences in the step, R rows whose logits are wanted, V vocab_size,
KvH num_key_value_heads, Hd head_dim.

A backend is a module `edgellm/backends/<name>/` whose `backend` attribute is a `Backend`; it is found by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgellm.backends.slots import CacheGeometry, SlotState

if TYPE_CHECKING:
    from edgellm.model.program import Program
    from edgellm.model.weights import Weights

#: Called while loading with (bytes done, bytes in all).
Progress = Callable[[int, int], None]
#: Called after each op with (its index in the program, the buffers by name, float32 [T, width]); may read, not write.
Trace = Callable[[int, Mapping[str, np.ndarray]], None]
#: Asked now and then during a step: whether nobody wants it any more. May be asked in any thread, takes no lock.
Stopped = Callable[[], bool]


class StepStopped(Exception):
    """`Runner.run` gave a step up because `stopped` said so: slots still hold what their states say."""


@dataclass(frozen=True)
class Choice:
    """How a row's token is chosen from its logits where nothing else is wanted of them: `engine/sampling.py`'s order
    with temperature, top-k and top-p alone.

    Attributes:
        vocab_size: ids from here on are never chosen; NaN and infinity among their logits count.
        temperature: 0 takes the largest logit, the first one on ties.
        top_k, top_p: 0 and 1 limit nothing. Of several logits that tie at the limit a backend may keep all.
        seed, draw: of the sequence (below 2**64), and the tokens that it has drawn before. A draw depends on these and
            the row alone: not on what else is in the step.
    """

    vocab_size: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    draw: int = 0

    @property
    def limited(self) -> bool:
        """Whether some tokens are out before the draw."""
        return self.temperature != 0 and (self.top_k != 0 or self.top_p < 1)


class LogitsUse(IntEnum):
    """What a step's logits are for. A backend may give those with fewer bits of the lm_head that hardly count then."""

    LARGEST = 0  # one of the hundred largest is taken
    DRAWN = 1  # one of all is drawn
    ALL = 2  # all count, as scores do


@dataclass(frozen=True)
class Batch:
    """One step of S sequences: prefill chunks and decode tokens side by side.

    Sequence s runs tokens `token_ids[seq_starts[s]:seq_starts[s + 1]]`, at least one, in the slot `states[s].slot`,
    whose state is the one *before* the step. No slot occurs twice. The caller keeps the book: after the step the
    state is `states[s].extended(number of tokens)`.

    Attributes:
        token_ids: int32 [T].
        seq_starts: int32 [S + 1], 0 first, T last.
        states: S slot states before the step.
        logits_rows: int32 [R], rows of T whose logits are wanted, ascending.
        inputs: float32 [T, width] by buffer name, for a program that begins with `inputs`; its token ids may be any.
        logits_use: what the logits of those rows are for.
        choices: for `Runner.choose`, one a row of `logits_rows`: how its token is chosen, None where its logits are
            wanted. A row with a choice is its sequence's last and the only one that the sequence wants.
        ahead: for `Runner.choose`, of one sequence whose token is its largest logit: how many tokens behind that one a
            backend may choose in the same call, each by a step over the one before. They have room in the slot.
    """

    token_ids: np.ndarray
    seq_starts: np.ndarray
    states: tuple[SlotState, ...]
    logits_rows: np.ndarray
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    logits_use: LogitsUse = LogitsUse.ALL
    choices: tuple[Choice | None, ...] = ()
    ahead: int = 0

    @classmethod
    def of(
        cls,
        parts: list[tuple[SlotState, list[int], str]],
        *,
        logits_use: LogitsUse = LogitsUse.ALL,
        choices: tuple[Choice | None, ...] = (),
        ahead: int = 0,
    ) -> Batch:
        """A batch from (state, token ids, which logits) a sequence: "all", "last" or "none"."""
        ids: list[int] = []
        starts, rows = [0], []
        for _, tokens, wanted in parts:
            first, ids = len(ids), ids + list(tokens)
            starts.append(len(ids))
            if wanted == "all":
                rows.extend(range(first, len(ids)))
            elif wanted == "last":
                rows.append(len(ids) - 1)
        return cls(
            np.array(ids, np.int32),
            np.array(starts, np.int32),
            tuple(state for state, _, _ in parts),
            np.array(rows, np.int32),
            logits_use=logits_use,
            choices=choices,
            ahead=ahead,
        )


@dataclass(frozen=True)
class Chosen:
    """What a step gives where tokens may be chosen by the backend.

    Attributes:
        tokens: int64 [R]; -1 where the row has no choice, or a logit that is NaN or infinite. Behind them those that
            were chosen of `Batch.ahead`; all but the last one have been run.
        logits: float32 [rows without a choice, V], in their order.
    """

    tokens: np.ndarray
    logits: np.ndarray


class Cache(Protocol):
    """Storage of keys and values for a fixed number of slots; which row is whose is `CacheGeometry`'s rule."""

    geometry: CacheGeometry
    nbytes: int

    def copy_slot(self, source: SlotState, target: int) -> None:
        """Copy what `source` holds into slot `target`: the target then has the same state but for its slot."""

    def export_slot(self, state: SlotState) -> dict[str, np.ndarray]:
        """What the slot holds, by name `layers.N.keys` / `.values`, as stored, in token order."""

    def import_slot(self, state: SlotState, tensors: Mapping[str, np.ndarray]) -> None:
        """Fill slot `state.slot` with what `export_slot` gave. Raises `ModelError` where shapes or dtypes differ."""


class Runner(Protocol):
    """A loaded model."""

    program: Program
    weight_nbytes: int

    def describe(self) -> Mapping[str, Any]:
        """What runs where, for the line at start: backend, device, isa, threads, weights."""

    def new_cache(self, geometry: CacheGeometry, num_slots: int) -> Cache:
        """Allocate the cache. Raises `OutOfMemoryError`."""

    def run(self, cache: Cache, batch: Batch, trace: Trace | None = None, stopped: Stopped | None = None) -> np.ndarray:
        """One step. Returns logits float32 [R, V]; a row may hold NaN or infinity, the caller judges.

        Of a program that was cut out of another (`model/cut.py`): its result, float32 [T, width], or the logits.

        Raises:
            StepStopped: `stopped` said so; it is asked in steps that may last longer than a person waits.
        """

    def close(self) -> None:
        """Free the weights; a second call does nothing."""


class ChoosingRunner(Runner, Protocol):
    """A runner that can choose tokens where the logits are: an engine then asks it to wherever `Choice` can say how.

    Attributes:
        draws: whether it takes choices with a temperature, too, or the largest logit alone.
    """

    draws: bool

    def choose(self, cache: Cache, batch: Batch, stopped: Stopped | None = None) -> Chosen:
        """One step of a program that gives logits, as `run`, by `batch.choices`. Raises as `run`."""


class Backend(Protocol):
    """What `edgellm/backends/<name>/__init__.py` offers as `backend`.

    Attributes:
        name: of the folder.
        devices: kinds of device it runs on.
        prefill_chunk: the most tokens of a step.
        finished: whether it may be chosen for somebody who names none; until its accuracy and speed are shown, a
            backend has to be asked for.
        options: choices that only some backends offer, by the keyword of `load` and `plan_bytes`; the first is the
            default.
        cache_dtypes: how it stores keys and values, of `slots.CACHE_DTYPES`; the most exact first.
    """

    name: str
    devices: tuple[str, ...]
    prefill_chunk: int
    finished: bool
    options: Mapping[str, tuple[str, ...]]
    cache_dtypes: tuple[str, ...]

    def unavailable(self) -> str | None:
        """None where this backend can run here, else the reason and the fix, a sentence."""

    def load(
        self,
        program: Program,
        weights: Weights,
        *,
        device: str | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
        **options: str,
    ) -> Runner:
        """Read and pack every weight, piece by piece. Raises `ModelError`, `BackendUnavailable`.

        `device` is one of the kinds of `devices`, with a number where there are several ("cuda:1"); None or "auto" the
        first. Who has but one of each may take it for granted: `backends.find` has seen that the kind is right.
        The reference runs parts of a program too; a backend that cannot raises `BackendUnavailable`.
        """

    def plan_bytes(
        self,
        program: Program,
        weights: Weights,
        geometry: CacheGeometry,
        num_slots: int,
        *,
        device: str | None = None,
        **options: str,
    ) -> MemoryPlan:
        """What `load` and `new_cache` will hold at their peak, from headers alone."""


@dataclass(frozen=True)
class DeviceMemoryPlan:
    """Bytes by purpose in the memory of a device that has its own.

    Attributes:
        device: such as "cuda:0".
        available: bytes that can be allocated on it now.
        weights, cache, scratch: as in `MemoryPlan`.
    """

    device: str
    available: int
    weights: int
    cache: int
    scratch: int

    @property
    def peak(self) -> int:
        """All of it: nothing is held there for loading alone."""
        return self.weights + self.cache + self.scratch


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose; the sum is the peak above the bare process. A device that shares this machine's memory, as a
    Jetson's does, counts here; one with its own has its plan in `on_device`.

    Attributes:
        weights: the packed weights that stay.
        cache: keys and values of all slots.
        scratch: activations of the largest step, logits included.
        loading: held only while loading, above what stays.
        code: compiled kernels and what the compiler keeps beside them.
        lm_head: what the lm_head will be stored as.
        lm_head_bytes: its bytes, among the weights; every token reads them.
        on_device: what is held in the device's own memory, beside all that.
    """

    weights: int
    cache: int
    scratch: int
    loading: int
    code: int = 0
    lm_head: str | None = None
    lm_head_bytes: int = 0
    notes: tuple[str, ...] = field(default=())
    on_device: DeviceMemoryPlan | None = None

    @property
    def peak(self) -> int:
        """The larger of the peak while loading and the peak while running."""
        return self.code + self.weights + max(self.loading, self.cache + self.scratch)

"""The engine: several threads may wait for tokens; whoever waits while nobody computes drives the next step.

There is no thread of its own. A step runs outside the lock, so that others can submit and cancel meanwhile. A sequence
may run a few tokens ahead of its consumer, and to its end when others wait for its slot: a consumer that pauses never
blocks another one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from edgellm.backends.interface import Cache, Chosen, Runner, StepStopped
from edgellm.backends.slots import SlotState
from edgellm.engine.results import Piece
from edgellm.engine.scheduler import Scheduler, Step, as_engine_error
from edgellm.engine.sequence import Request, Sequence
from edgellm.errors import ContextLengthError, EdgeLLMError, EngineBusy, EngineClosed

_NO_TOKENS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Held:
    """What a slot holds: its state, the ids of its kept tokens, and the cache's tensors."""

    state: SlotState
    tokens: list[int]
    tensors: Mapping[str, np.ndarray]


class Engine:
    """Runs sequences over the slots of one cache.

    A step that nobody waits for any more, since its sequences were cancelled or the engine closed, is given up.

    Args:
        runner: the loaded model; closed with the engine.
        cache: made by the runner.
        num_slots: of the cache.
    """

    def __init__(self, runner: Runner, cache: Cache, num_slots: int) -> None:
        self.runner = runner
        self.cache: Cache | None = cache
        self.geometry = cache.geometry
        self._choose = getattr(runner, "choose", None)
        chooses = self._choose is not None
        self._scheduler = Scheduler(cache, num_slots, chooses=chooses, draws=chooses and runner.draws)
        self._changed = threading.Condition()
        self._driver: int | None = None
        self._closed = False
        self._pid = os.getpid()

    def submit(self, request: Request) -> Sequence:
        """Queue a request.

        Raises:
            ContextLengthError: the prompt is longer than the context.
            EngineClosed: the engine is closed, or belongs to a parent process.
        """
        self._check_open()
        context = self.geometry.context
        if not self.geometry.unbounded and len(request.prompt) > context:
            raise ContextLengthError(
                f"the prompt has {len(request.prompt)} tokens and the context holds {context}",
                key="prompt",
                hint="Shorten the prompt or load the model with a larger context.",
            )
        sequence = Sequence(request)
        with self._changed:
            self._check_open()
            self._scheduler.add(sequence)
        return sequence

    def next_piece(self, sequence: Sequence) -> Piece | None:
        """The sequence's next piece, computed by this thread where no other one computes; None at its end.

        When the program is over, a daemon thread gets no `EngineClosed` but rests here until the process is gone.

        Raises:
            NumericalError: the sequence met NaN or infinity.
            EngineClosed: the engine was closed before the end.
            EdgeLLMError: the step failed; the sequence is over, others go on.
            EngineBusy: called in the middle of a step of this very thread.
        """
        self._refuse_nesting()
        try:
            return self._next_piece(sequence)
        except EngineClosed:
            _rest_after_the_program()
            raise

    def _next_piece(self, sequence: Sequence) -> Piece | None:
        try:
            while True:
                self._check_fork()
                with self._changed:
                    if sequence.pieces:
                        return sequence.pieces.popleft()
                    if sequence.error is not None:
                        raise sequence.error
                    if sequence.over:
                        return None
                    if self._driver is not None:
                        self._changed.wait()
                        continue
                    self._driver = threading.get_ident()
                self._drive()
                self._stop_driving()
        finally:
            self._stop_driving()

    def finish(self, sequence: Sequence) -> None:
        """End a sequence now, wherever it is; its slot is free afterwards. For one that is over nothing happens."""
        sequence.cancel_requested = True
        if os.getpid() != self._pid or self._driver == threading.get_ident():
            return  # a signal handler inside a step: the step's end will find the flag
        with self._changed:
            while self._driver is not None:
                self._changed.wait()
            self._scheduler.reap()

    @contextmanager
    def exclusive(self) -> Iterator[Runner]:
        """The runner for one step outside the scheduler, with a cache of the caller's own. Raises `EngineClosed`."""
        self._check_open()
        self._refuse_nesting()
        with self._changed:
            while self._driver is not None:
                self._changed.wait()
            self._check_open()
            self._driver = threading.get_ident()
        try:
            yield self.runner
        finally:
            self._stop_driving()

    @property
    def cache_identity(self) -> dict[str, Any]:
        """What a saved slot must agree with to be loaded here, JSON-able."""
        named = {item.name: getattr(self.geometry, item.name) for item in fields(self.geometry) if item.name != "chunk"}
        return {**named, "windows": list(self.geometry.windows), "backend": self.runner.describe().get("backend")}

    def export(self, owner: object) -> Held | None:
        """What the slot of conversation `owner` holds, None where no slot holds it any more. Raises `EngineClosed`."""
        with self.exclusive():
            slots = [slot for slot in self._scheduler.slots if slot.owner is owner and not slot.busy]
            if not slots:
                return None
            return Held(slots[0].state, list(slots[0].tokens), self.cache.export_slot(slots[0].state))

    def adopt(self, owner: object, held: Held) -> None:
        """Put what `export` gave into the least recently used free slot; where none is free nothing happens.

        Raises:
            ModelError: the tensors are not this cache's.
            EngineClosed: see `submit`.
        """
        with self.exclusive():
            free = [slot for slot in self._scheduler.slots if not slot.busy]
            if free:
                slot = min(free, key=lambda slot: slot.used)
                slot.reset()
                state = replace(held.state, slot=slot.index)
                self.cache.import_slot(state, held.tensors)
                slot.state, slot.tokens, slot.owner = state, list(held.tokens), owner

    def close(self) -> None:
        """End all sequences with `EngineClosed` and free weights and cache, after the step under way; idempotent."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            self._closed = True
            if self._driver == threading.get_ident():
                return  # a signal handler inside a step: freed when the step ends
            while self._driver is not None:
                self._changed.wait()
            self._free()

    def _free(self) -> None:
        """What `close` does while nobody drives."""
        if self.cache is not None:
            self._scheduler.fail(None, EngineClosed("the engine was closed before the answer ended"))
            self.cache = self._scheduler.cache = None
            self._changed.notify_all()
            self.runner.close()

    def _drive(self) -> None:
        """One step; the caller is the driver. Interrupted or stopped inside the runner, it leaves the books alone."""
        step: Step | None = None
        in_books = True
        try:
            with self._changed:
                if not self._closed:
                    step = self._scheduler.plan()
            if step is not None:
                in_books = False
                chosen = self._run(step)
                in_books = True
                with self._changed:
                    self._scheduler.commit(step, chosen)
        except StepStopped:
            pass  # whoever was cancelled is taken out before the next step
        except Exception as error:
            with self._changed:
                self._scheduler.fail(step, as_engine_error(error))
        except BaseException:
            if in_books:
                with self._changed:
                    self._scheduler.fail(step, EdgeLLMError("the step was interrupted"))
            raise

    def _run(self, step: Step) -> Chosen:
        """What the runner gives for a step: logits, or tokens where it may choose."""

        def stopped() -> bool:
            return self._closed or step.unwanted

        if step.batch.choices:
            return self._choose(self.cache, step.batch, stopped)
        return Chosen(_NO_TOKENS, self.runner.run(self.cache, step.batch, stopped=stopped))

    def _stop_driving(self) -> None:
        """Let others drive, where this thread was the driver."""
        if self._driver == threading.get_ident():
            with self._changed:
                self._driver = None
                if self._closed:
                    self._free()
                self._changed.notify_all()

    def _refuse_nesting(self) -> None:
        if self._driver == threading.get_ident():
            raise EngineBusy(
                "called in the middle of a step of this very thread", hint="A signal handler may only cancel or close."
            )

    def _check_open(self) -> None:
        self._check_fork()
        if self._closed:
            raise EngineClosed("the engine is closed", hint="Load the model again.")

    def _check_fork(self) -> None:
        if os.getpid() != self._pid:
            raise EngineClosed(
                "this process was forked from the one that loaded the model",
                hint='Use the start method "spawn" of multiprocessing and load the model in each process.',
            )


def _rest_after_the_program() -> None:
    """Where the main thread has ended, a daemon thread stays here: its error would be printed for nobody to act on."""
    if threading.current_thread().daemon and not threading.main_thread().is_alive():
        threading.Event().wait()

"""Threads that each enter one compiled function and stay in it for a whole step.

    team = Team()                       # as many threads as there are cores for this process
    team.run(walk, table, team.sync)    # walk(table, sync, ith, nth) in each; inside they meet at `barrier`

The caller is thread 0; the others are parked on a lock between steps and cost nothing there. A step ends early, at the
next barrier, when a thread fails, when `stop` is called, or when Ctrl-C reaches an interruptible step.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgellm.backends.cpu.cores import Cores, choose_threads, detect
from edgellm.backends.cpu.sync import STOP, SYNC_SIZE
from edgellm.errors import EngineClosed, OutOfMemoryError

_JOIN_SECONDS = 5.0
#: How long one wait for a lock lasts at most: between waits signals are looked at, where the system does not break
#: them, and whether the step is still wanted.
_WAIT_SECONDS = 0.05
_EXIT_SECONDS = 2.0


class Team:
    """`threads` threads, the caller of `run` included.

    Args:
        threads: how many; None for one a physical core that this process may use (affinity and quotas count).
        pin: whether to bind the started threads to a core each. None binds them where the team takes all cores that
            the process may use and no other team is bound; the caller's thread is never touched, for what it starts
            later would inherit the binding.
        cores: what the process may run on, None to look.

    Attributes:
        threads: how many there are.
        note: a sentence to show where more threads than cores were asked for, else None.
        pinned: whether the started threads are bound.
        sync: int64 array for `barrier`, zero when a step begins.

    Raises:
        UsageError: a number of threads out of range.
        OutOfMemoryError: the system starts no more threads.
    """

    def __init__(self, threads: int | None = None, *, pin: bool | None = None, cores: Cores | None = None) -> None:
        cores = cores or detect()
        self.threads, self.note = choose_threads(threads, cores)
        self._shared = _Shared(_binding(self.threads, cores, pin))
        self.pinned = self._shared.processors is not None
        self.sync = self._shared.sync
        _teams.add(self._shared)
        _register()
        # Without the team nobody can give its threads work any more.
        self._finalizer = weakref.finalize(self, _Shared.dismiss, self._shared)
        self._finalizer.atexit = False
        for ith in range(1, self.threads):
            self._shared.hire(ith)

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        interruptible: bool = False,
        stopped: Callable[[], bool] | None = None,
    ) -> bool:
        """Call `function(*args, ith, nth)` in every thread and wait for all of them.

        Args:
            function: nopython code that gives up the GIL, as `kernel` makes it; anything that may be called side by
                side. It should look at `sync[STOP]`, by `barrier` or between pieces of work.
            args: the same for all.
            interruptible: run the part of thread 0 in a thread of its own and wait for it where signals are answered;
                for steps that may take longer than a person waits for Ctrl-C (it costs a wake-up).
            stopped: asked every 50 ms of an interruptible step; once it says so, the step ends as by `stop`.

        Returns:
            True if the step went to its end, False if `stop` or `stopped` ended it.

        Raises:
            EngineClosed: the team was closed, or is one of the process that this one was forked from.
            Whatever one of the threads raised; the others have left the step by then.
        """
        shared = self._shared
        shared.check()
        with shared.running:
            shared.check()
            if interruptible and not shared.has_stand_in:
                shared.hire(0)
            return shared.step(function, args, self.threads, interruptible, stopped)

    def stop(self) -> None:
        """End the step at hand at its next barrier; nothing where none is under way. From any thread."""
        self.sync[STOP] = 1

    def close(self) -> None:
        """End the step at hand and the threads. A second call does nothing."""
        shared = self._shared
        if shared.forked:
            return
        shared.closed = True
        self.stop()
        with shared.running:
            self._finalizer()
        for worker in shared.workers:
            if worker.thread is not threading.current_thread():
                worker.thread.join(_JOIN_SECONDS)


class _Worker:
    """A parked thread. Two locks are used as flags that are set by releasing; a flag set twice wakes nobody wrongly,
    since what counts are the numbers of steps."""

    def __init__(self, ith: int) -> None:
        self.ith = ith
        self.start = threading.Lock()
        self.done = threading.Lock()
        self.start.acquire()
        self.done.acquire()
        self.finished = 0
        self.thread: threading.Thread


class _Shared:
    """What the threads know of their team: they must not keep the team itself alive."""

    def __init__(self, processors: tuple[int, ...] | None) -> None:
        self.processors = processors
        self.sync = np.zeros(SYNC_SIZE, np.int64)
        self.running = threading.Lock()
        self.workers: list[_Worker] = []
        self.closed = False
        self.forked = False
        self.number = 0
        self.job: tuple[Callable[..., Any], tuple[Any, ...], int] | None = None
        self.errors: list[BaseException] = []

    @property
    def has_stand_in(self) -> bool:
        """Whether there is a thread that does the part of thread 0."""
        return any(worker.ith == 0 for worker in self.workers)

    def hire(self, ith: int) -> None:
        worker = _Worker(ith)
        worker.finished = self.number
        worker.thread = threading.Thread(target=_work, args=(self, worker), name=f"edgellm-{ith}", daemon=True)
        try:
            worker.thread.start()
        except RuntimeError:
            self.dismiss()
            raise OutOfMemoryError("the system starts no more threads", key="threads", found=ith + 1) from None
        self.workers.append(worker)

    def check(self) -> None:
        if self.forked:
            hint = 'Start processes with the "spawn" method, or load the model in the new process.'
            raise EngineClosed("this process was forked from the one that the threads belong to", hint=hint)
        if self.closed:
            raise EngineClosed("the threads were ended by close()")

    def step(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        nth: int,
        interruptible: bool,
        stopped: Callable[[], bool] | None,
    ) -> bool:
        workers = [worker for worker in self.workers if interruptible or worker.ith > 0]
        self.sync[:] = 0
        self.errors.clear()
        self.job = (function, args, nth)
        self.number += 1
        try:
            for worker in workers:
                worker.start.release()
            if not interruptible:
                if self.processors is None or _current_processor() not in (None, *self.processors[1:]):
                    function(*args, 0, nth)
                else:
                    with _bound(self.processors[0]):
                        function(*args, 0, nth)
        except BaseException as error:  # a KeyboardInterrupt between two releases too
            self.sync[STOP] = 1
            self.errors.append(error)
        self.wait(workers, stopped if interruptible else None)
        self.job = None
        if self.errors:
            raise self.errors[0]
        return not self.sync[STOP]

    def wait(self, workers: list[_Worker], stopped: Callable[[], bool] | None) -> None:
        """Until all have finished the step; who has not begun it is woken, to find the stop flag."""
        while True:
            try:
                for worker in workers:
                    while worker.finished != self.number:
                        if self.errors and worker.start.locked():
                            worker.start.release()
                        worker.done.acquire(timeout=_WAIT_SECONDS)
                        if stopped is not None and worker.finished != self.number and stopped():
                            self.sync[STOP] = 1
                return
            except BaseException as error:  # Ctrl-C while waiting
                self.sync[STOP] = 1
                self.errors.append(error)

    def dismiss(self) -> None:
        """Send the threads home."""
        self.closed = True
        for worker in self.workers:
            if worker.start.locked():
                worker.start.release()


@contextlib.contextmanager
def _bound(processor: int) -> Iterator[None]:
    """Bind the calling thread for a step, where it stands on the processor of a bound thread.

    Left free, it can stay there for many steps, and every barrier then takes the 2 us of two changes of thread
    (measured) in place of 0.04. Moved once, it stays where it is as a rule: then nothing is bound, which takes three
    system calls, 50 us a token on a machine whose caches are full of weights.
    """
    before = os.sched_getaffinity(0)
    try:
        _bind(processor)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, before)


@functools.cache
def _processor_asker() -> Callable[[], int] | None:
    """The C library's `sched_getcpu`, which is no system call; None where there is none."""
    try:
        return ctypes.CDLL(None).sched_getcpu
    except (AttributeError, OSError, TypeError):
        return None


def _current_processor() -> int | None:
    """Where the calling thread runs; None where the system does not say."""
    ask = _processor_asker()
    found = -1 if ask is None else ask()
    return None if found < 0 else found


def _bind(processor: int) -> None:
    with contextlib.suppress(OSError):  # the processor may have been taken from the process meanwhile
        os.sched_setaffinity(0, {processor})  # of the calling thread alone


def _work(shared: _Shared, worker: _Worker) -> None:
    if shared.processors is not None:
        _bind(shared.processors[worker.ith])
    while True:
        worker.start.acquire()
        number, job = shared.number, shared.job
        if worker.finished != number and job is not None:
            function, args, nth = job
            try:
                function(*args, worker.ith, nth)
            except BaseException as error:
                shared.errors.append(error)
                shared.sync[STOP] = 1
            del function, args, job
            worker.finished = number
            if worker.done.locked():
                worker.done.release()
        elif shared.closed:
            return


_teams: weakref.WeakSet[_Shared] = weakref.WeakSet()
_registered = False


def _binding(threads: int, cores: Cores, pin: bool | None) -> tuple[int, ...] | None:
    """The processor of each thread, None to leave them to the system."""
    whole = len(cores.processors) == threads > 1
    taken = any(shared.processors is not None and not shared.closed for shared in _teams)
    wanted = pin if pin is not None else whole and not taken
    return cores.processors[:threads] if wanted and len(cores.processors) >= threads else None


def _register() -> None:
    global _registered
    if _registered:
        return
    _registered = True
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forked)
    atexit.register(_at_exit)


def _forked() -> None:
    """Only the thread that forked lives on in the child: no team there can ever do a step."""
    for shared in list(_teams):
        shared.forked = True


def _at_exit() -> None:
    """Let no thread compute in memory that the interpreter is about to free."""
    deadline = time.monotonic() + _EXIT_SECONDS
    for shared in list(_teams):
        shared.closed = True
        shared.sync[STOP] = 1
    for shared in list(_teams):
        if not shared.forked:
            shared.running.acquire(timeout=max(0.0, deadline - time.monotonic()))

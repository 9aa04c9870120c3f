"""What the compiler is at: for `edgellm warmup`, for first runs, and for tests that want to see none of it.

numba announces each compilation as an event; kernels are told from the host application's functions by their cache.
numba compiles under one lock, so the figures below need none of their own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

#: Called with a kernel's name and None when its compilation begins, and the seconds it took when it has ended. Kernels
#: that a kernel calls are compiled within it, and their seconds are part of its own.
Callback = Callable[[str, "float | None"], None]


@dataclass
class Statistics:
    """Counts since the process began.

    Attributes:
        compiled: compilations that succeeded; a kernel is compiled once for each list of argument types.
        loaded: entries taken from the cache instead.
        seconds: wall time of all compilations.
    """

    compiled: int = 0
    loaded: int = 0
    seconds: float = 0.0


class _Plan(NamedTuple):
    kernels: int  # to be compiled
    before: int  # compiled when it was made
    began: float


_NONE = _Plan(0, 0, 0.0)
_plan = _NONE
_statistics = Statistics()
_callbacks: list[Callback] = []
_started: list[float] = []
#: Fewer say too little about how long the others will take.
_TELLING = 8
_listening = False


def statistics() -> Statistics:
    """A copy of the counts as they are now."""
    return Statistics(_statistics.compiled, _statistics.loaded, _statistics.seconds)


@contextlib.contextmanager
def compiling(callback: Callback) -> Iterator[None]:
    """Within the context `callback` hears of every kernel that is compiled, in the thread that compiles it."""
    _callbacks.append(callback)
    try:
        yield
    finally:
        _callbacks.remove(callback)


def count_loaded() -> None:
    """A kernel came from the cache."""
    _statistics.loaded += 1


def expect(kernels: int) -> None:
    """About so many are compiled from now on until the compilation at hand ends."""
    global _plan
    _plan = _Plan(kernels, _statistics.compiled, time.perf_counter())


def seconds_left() -> float | None:
    """About how long the compilation at hand will take yet; None where nobody knows."""
    done = _statistics.compiled - _plan.before
    if not _TELLING <= done < _plan.kernels:
        return None
    return (time.perf_counter() - _plan.began) / done * (_plan.kernels - done)


def listen() -> None:
    """Begin to count, once; a numba without these events is not counted."""
    global _listening
    if _listening:
        return
    _listening = True
    try:
        from numba.core import event

        class Listener(event.Listener):
            def on_start(self, event: Any) -> None:
                _on_start(event.data)

            def on_end(self, event: Any) -> None:
                _on_end(event.data)

        event.register("numba:compile", Listener())
    except (ImportError, AttributeError):
        return


@contextlib.contextmanager
def announced(name: str) -> Iterator[None]:
    """Count what is done within as the compilation of kernel `name`, of which numba announces nothing."""
    listen()
    _begin(name)
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        _end(name, succeeded)


def _on_start(data: Any) -> None:
    if _is_kernel(data):
        _begin(_name(data))


def _on_end(data: Any) -> None:
    if _is_kernel(data):
        # the event's own `is_failed` says the opposite in numba 0.68
        _end(_name(data), tuple(data["args"]) in data["dispatcher"].overloads)


def _begin(name: str) -> None:
    _started.append(time.perf_counter())
    for callback in tuple(_callbacks):
        callback(name, None)


def _end(name: str, succeeded: bool) -> None:
    global _plan
    seconds = time.perf_counter() - _started.pop()
    if not _started:
        _plan = _NONE
        _statistics.seconds += seconds
    if not succeeded:
        return
    _statistics.compiled += 1
    for callback in tuple(_callbacks):
        callback(name, seconds)


def _is_kernel(data: Any) -> bool:
    from edgellm.backends.cpu.jit_cache import is_kernel

    return isinstance(data, dict) and is_kernel(data.get("dispatcher"))


def _name(data: Any) -> str:
    return data["dispatcher"].py_func.__qualname__.replace("<locals>.", "")

"""What a person sees while kernels are compiled, which happens once on a machine; nothing where none is.

numba is not imported here: only a backend that compiles announces anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

from edgellm.cli.places import short
from edgellm.cli.status_line import StatusLine
from edgellm.cli.terminal import Terminal


class Compiling:
    """Within this context compilations are shown: a line that counts on a terminal, else one at the start; one when all
    is done.

    Args:
        terminal: to speak through.
        summarize: whether to say at the end what was compiled.
        make_room: called before anything is said, to take away what else is shown in the last line.

    Attributes:
        compiled: kernels compiled so far.
        seconds: wall time that it took.
    """

    def __init__(
        self, terminal: Terminal, *, summarize: bool = True, make_room: Callable[[], None] = lambda: None
    ) -> None:
        self.compiled, self.seconds = 0, 0.0
        self._terminal, self._summarize, self._make_room = terminal, summarize, make_room
        self._line = StatusLine(terminal)
        self._depth = 0
        self._began: float | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Compiling:
        from edgellm.backends.cpu import jit_progress

        self._before = jit_progress.statistics()
        self._stack.enter_context(self._line)
        self._stack.enter_context(jit_progress.compiling(self._hear))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        from edgellm.backends.cpu import jit_progress

        self._stack.close()
        now = jit_progress.statistics()
        self.compiled, self.seconds = now.compiled - self._before.compiled, now.seconds - self._before.seconds
        if self._began is not None and kind is None and self._summarize:
            self._terminal.say(self.summary())

    def summary(self) -> str:
        """What was compiled, how long it took and where it is kept."""
        folder = kept_in()
        kept = f"kept in {short(folder)}" if folder else "they cannot be kept on this machine"
        return f"compiled {kernels(self.compiled)} in {self.seconds:.0f} s; {kept}"

    def _hear(self, name: str, seconds: float | None) -> None:
        """A compilation began, or ended after `seconds`; kernels that a kernel calls are compiled within it."""
        self._make_room()
        if self._began is None:
            self._began = time.monotonic()
            if not self._line.live:
                self._terminal.say(_what())
        if seconds is None:
            self._depth += 1
        else:
            self._depth, self.compiled = self._depth - 1, self.compiled + 1
        if self._depth > 0:
            self._line.show(f"{_what()}: {self.compiled} done, {time.monotonic() - self._began:.0f} s{_left()}")
        else:  # the loading bar may come next
            self._line.clear()


def kernels(number: int) -> str:
    """The number with its noun."""
    return f"{number} kernel{'s' * (number != 1)}"


def kept_in() -> str | None:
    """The folder that compiled kernels are written to, None where there is none."""
    from edgellm.backends.cpu.jit_cache import folders

    folder = folders().writable()
    return None if folder is None else str(folder)


def found_in() -> str | None:
    """The first folder that compiled kernels are read from, None where there is none."""
    from edgellm.backends.cpu.jit_cache import folders

    return next(map(str, folders().readable()), None)


def _left() -> str:
    from edgellm.backends.cpu import jit_progress

    seconds = jit_progress.seconds_left()
    return "" if seconds is None else f", about {seconds:.0f} s left"


def _what() -> str:
    from edgellm.simd import TARGET

    return f"compiling kernels for {TARGET.isa}, once on this machine"

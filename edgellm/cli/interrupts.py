"""Ctrl-C: the first stops what is being written, the second within a second ends the program."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

_AGAIN_S = 1.0


class Interrupts:
    """When Ctrl-C was pressed, over a whole session."""

    def __init__(self) -> None:
        self._last: float | None = None

    def again(self) -> bool:
        """Note a Ctrl-C; whether it came within a second of the one before."""
        now = time.monotonic()
        last, self._last = self._last, now
        return last is not None and now - last < _AGAIN_S

    @contextlib.contextmanager
    def stopping(self, cancel: Callable[[], None]) -> Iterator[None]:
        """While this is open, Ctrl-C calls `cancel` and a second one raises `KeyboardInterrupt`.

        `cancel` runs in the signal handler of the main thread, so it may take no lock.
        """
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
            yield
            return

        def on_signal(number: int, frame: object) -> None:
            if self.again():
                raise KeyboardInterrupt
            cancel()

        signal.signal(signal.SIGINT, on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from edgellm.cli import interrupts
from edgellm.cli.interrupts import Interrupts

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)


def test_the_first_stops_and_the_second_leaves():
    stopped = threading.Event()
    with pytest.raises(KeyboardInterrupt), Interrupts().stopping(stopped.set):  # noqa: PT012
        press()
        assert stopped.wait(1)
        press()


def test_a_second_that_comes_late_only_stops(monkeypatch):
    clock = iter([0.0, 1.5, 2.0])
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: next(clock))
    presses = Interrupts()
    assert [presses.again() for _ in range(3)] == [False, False, True]


def test_the_handler_before_comes_back():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts().stopping(lambda: None):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts().stopping(lambda: None):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_have_no_signals():
    seen = []

    def work() -> None:
        with Interrupts().stopping(lambda: None):
            seen.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]

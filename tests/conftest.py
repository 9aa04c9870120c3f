"""What all tests share; it lies beside `__init__.py`, so that each can import `tests.fakes` whichever folder is run."""

from __future__ import annotations

import os
import signal
import tempfile

import pytest

from edgellm.folders import folder


def pytest_configure(config: pytest.Config) -> None:
    """One cache of compiled kernels for the whole run and its subprocesses, whatever home a test gives itself; Ctrl-C.

    It is the one of the user who runs the tests, since a cache that holds the right kernels is told by its digest:
    only the first run after a change of a kernel compiles.

    A run in the background of a shell ignores Ctrl-C, and so would every subprocess that a test interrupts: it would
    never end.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not os.environ.get("EDGELLM_CACHE_DIR"):
        os.environ["EDGELLM_CACHE_DIR"] = str(folder("cache") or tempfile.mkdtemp(prefix="edgellm-tests-"))

"""What all tests share; it lies beside `__init__.py`, so that each can import `tests.fakes` whichever folder is run."""

from __future__ import annotations

import os
import tempfile

import pytest

from edgellm.folders import folder


def pytest_configure(config: pytest.Config) -> None:
    """One cache of compiled kernels for the whole run and its subprocesses, whatever home a test gives itself.

    It is the one of the user who runs the tests, since a cache that holds the right kernels is told by its digest:
    only the first run after a change of a kernel compiles.
    """
    if not os.environ.get("EDGELLM_CACHE_DIR"):
        os.environ["EDGELLM_CACHE_DIR"] = str(folder("cache") or tempfile.mkdtemp(prefix="edgellm-tests-"))

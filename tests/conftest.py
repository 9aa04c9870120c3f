"""What all tests share; it lies beside `__init__.py`, so that each can import `tests.fakes` whichever folder is run."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm.folders import folder
from tests.ahead import Ahead, Process

FOLDER = Path(__file__).parent
#: Folders and files whose tests neither call kernels of the CPU backend's walker nor have a team of threads, but for a
#: few of the last folder.
FIRST = (
    "engine",
    "formats",
    "model",
    "text",
    "simd",
    "convert",
    "backends/cpu/test_jit_cache.py",
    "backends/cpu/test_native_cache.py",
    "test_compare_quantizers.py",
    "test_cuda_device_suite.py",
    "backends/cuda",
)


def pytest_configure(config: pytest.Config) -> None:
    """One cache of compiled kernels for the whole run and its subprocesses, whatever home a test gives itself; Ctrl-C.

    It is the one of the user who runs the tests, since a cache that holds the right kernels is told by its digest:
    only the first run after a change of a kernel compiles.

    A run in the background of a shell ignores Ctrl-C, and so would every subprocess that a test interrupts: it would
    never end.

    NumPy's matrix products have one thread: several wait for each other as teams do, see below. Perplexity by the
    reference took 4.3 s with two threads on two idle cores, 12.3 beside two nicer processes and 4.7 there with one.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy reads it when it is imported
    if not os.environ.get("EDGELLM_CACHE_DIR"):
        os.environ["EDGELLM_CACHE_DIR"] = str(folder("cache") or tempfile.mkdtemp(prefix="edgellm-tests-"))


def _ahead(item: pytest.Item) -> Process | None:
    """The process whose end `item` waits for, if it does."""
    return item.callspec.params.get("process") if hasattr(item, "callspec") else None


def _first(item: pytest.Item) -> int:
    """Which of `FIRST` has `item`, counted from 1; 0 if none has."""
    return next((at for at, name in enumerate(FIRST, 1) if FOLDER / name in (item.path, *item.path.parents)), 0)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one thread come first, then those that wait for processes.

    Teams of threads come when nothing runs beside them: a thread that yields at a barrier to another process, however
    nice, waits for the end of its slice, at each barrier.
    """
    behind = len(FIRST) + 1
    items.sort(key=lambda item: behind if _ahead(item) else _first(item) or behind + 1)


@pytest.fixture(scope="session", autouse=True)
def ahead(request: pytest.FixtureRequest) -> Iterator[Ahead]:
    """The processes of the selected tests, begun; before them the compiling of kernels where other tests come first."""
    begun, items = Ahead(), request.session.items
    if _first(items[0]) and not all(map(_first, items)):
        begun.begin(Process(["-m", "edgellm", "warmup"], dict(os.environ)))
    for process in filter(None, map(_ahead, items)):
        begun.begin(process)
    yield begun
    begun.close()


@pytest.fixture
def process(request: pytest.FixtureRequest, ahead: Ahead) -> subprocess.CompletedProcess[str]:
    """What the process did that is the test's parameter: see `tests.ahead`."""
    return ahead.result(request.param)

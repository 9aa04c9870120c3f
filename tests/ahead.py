"""Processes that tests wait for, begun ahead of them: most tests keep one core busy, these have the others.

A test that looks at what a process of its own did takes the fixture `process`, whose parameter tells what to run:

    @pytest.mark.parametrize("process", [Process(["-m", "tests.some_module"], environ)], ids=["name"], indirect=True)
    def test_elsewhere(process: subprocess.CompletedProcess[str]) -> None: ...

The processes of all selected tests run from the first test on, with less priority, beside tests of one thread; their
tests come behind those, and before the others.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Two, although tests run beside them: when tests wait, both cores of a small machine work.
AT_ONCE = 2
#: What the scheduler gives a process falls to a third, so the tests keep a core of two.
NICER = 5
#: A process that takes longer hangs.
SECONDS = 600


@dataclass(frozen=True, eq=False)
class Process:
    """`python ARGUMENTS` in the root of the checkout, with no other environment than `environ`."""

    arguments: Sequence[str]
    environ: Mapping[str, str]


class Ahead:
    """Runs processes beside the tests, `AT_ONCE` of them."""

    def __init__(self) -> None:
        self._workers = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ahead")
        self._begun: dict[Process, Future[subprocess.CompletedProcess[str]]] = {}
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def begin(self, process: Process) -> None:
        """`process` runs, once no more than `AT_ONCE` of those begun before it do."""
        if process not in self._begun:
            self._begun[process] = self._workers.submit(self._run, process)

    def result(self, process: Process) -> subprocess.CompletedProcess[str]:
        """What `process` did, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it hung, and was killed.
        """
        self.begin(process)
        return self._begun[process].result()

    def close(self) -> None:
        """None runs any more."""
        with self._lock:
            self._closed = True
            for running in self._running:
                running.kill()
        self._workers.shutdown(cancel_futures=True)

    def _run(self, process: Process) -> subprocess.CompletedProcess[str]:
        with self._lock:
            if self._closed:
                raise RuntimeError("the tests have ended")
            running = subprocess.Popen(
                [sys.executable, *process.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=process.environ,
            )
            self._running.add(running)
        with contextlib.suppress(AttributeError, OSError):  # no such call, or the process has ended
            os.setpriority(os.PRIO_PROCESS, running.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICER)
        with running:
            try:
                out, err = running.communicate(timeout=SECONDS)
            finally:
                running.kill()
                with self._lock:
                    self._running.discard(running)
        return subprocess.CompletedProcess(running.args, running.returncode, out, err)

"""Pieces of packing, done by some threads while the caller prepares the next ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from edgellm.backends.interface import Progress


class PackingJobs:
    """A queue that is short, so that little is prepared ahead; a context manager, which at its end waits for all.

    Results are collected in the order of submission, by the calling thread: progress is told there, and what a job
    raises is raised there. After an error jobs that have not begun are dropped.

    Args:
        threads: that work; with one, a job is done at once by the caller.
        progress: told of the bytes of finished jobs.
        total: bytes of all jobs.
    """

    def __init__(self, threads: int, progress: Progress | None, total: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "edgellm-pack") if threads > 1 else None
        self._ahead = 2 * threads
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._progress, self._total = progress, total
        self._done = 0

    def submit(self, nbytes: int, work: Callable[[], None]) -> None:
        """Do `work`, which counts as `nbytes`; waits while many are waiting. Raises what an earlier job raised."""
        if self._pool is None:
            work()
            self.count(nbytes)
            return
        self._waiting.append((self._pool.submit(work), nbytes))
        if len(self._waiting) > self._ahead:
            self._collect()

    def drain(self) -> None:
        """Wait until all jobs are done. Raises what one of them raised."""
        while self._waiting:
            self._collect()

    def count(self, nbytes: int) -> None:
        """Tell of `nbytes` more that are done; never more than all."""
        self._done = min(self._done + nbytes, self._total)
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _collect(self) -> None:
        job, nbytes = self._waiting.popleft()
        job.result()
        self.count(nbytes)

    def __enter__(self) -> PackingJobs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)

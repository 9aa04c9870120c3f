"""Rows of a matrix shared among threads; each row is computed by one of them, so results do not depend on how many."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_MIN_ROWS = 16  # below, handing out costs more than it saves


def thread_count(threads: int | None) -> int:
    """How many threads to use: as asked, or one for every processor this process may run on."""
    if threads is not None:
        return max(1, threads)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def over_rows(kernel: Callable[[int, int], object], rows: int, threads: int | None) -> None:
    """Call `kernel(first, last)`, which must release the GIL, for parts that together are all `rows`."""
    parts = min(thread_count(threads), max(1, rows // _MIN_ROWS))
    if parts == 1:
        kernel(0, rows)
        return
    bounds = [rows * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(kernel, bounds[:-1], bounds[1:]))

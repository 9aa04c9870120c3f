"""Work shared among threads: each row, or each item, is done by one of them, so results do not depend on how many."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from edgellm.convert.blas import blas_threads, one_thread_a_product

_MIN_ROWS = 16  # below, handing out costs more than it saves

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_count(threads: int | None) -> int:
    """How many threads to use: as asked, or one for every processor this process may run on."""
    if threads is not None:
        return max(1, threads)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def product_threads(threads: int | None = None) -> int:
    """How many threads `over_products` uses: as many as BLAS would for one product; 1 where BLAS cannot be told."""
    own = blas_threads()
    return 1 if own is None else max(1, own if threads is None else threads)


def over_rows(kernel: Callable[[int, int], object], rows: int, threads: int | None) -> None:
    """Call `kernel(first, last)`, which must release the GIL, for parts that together are all `rows`."""
    parts = min(thread_count(threads), max(1, rows // _MIN_ROWS))
    if parts == 1:
        kernel(0, rows)
        return
    bounds = [rows * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(kernel, bounds[:-1], bounds[1:]))


def over_products(work: Callable[[Item], Result], items: Sequence[Item], threads: int | None = None) -> list[Result]:
    """[work(item) for item in items], for work that makes matrix products and has other things to do between them.

    Each thread makes its own products on its own processor. BLAS that shares every product among its threads leaves
    them idle in between, and waits for the slowest at each.

    Args:
        work: of one item; of several at once in several threads.
        items: the longest first.
        threads: see `product_threads`.
    """
    count = min(product_threads(threads), len(items))
    if count < 2:
        return [work(item) for item in items]
    with one_thread_a_product(), ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, items))

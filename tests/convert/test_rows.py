"""Threads that share rows or products: everything is done once, in order, and BLAS is left as it was."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edgellm.convert import blas, rows


def test_results_come_in_the_order_of_the_items() -> None:
    assert rows.over_products(lambda n: n * n, range(100), threads=4) == [n * n for n in range(100)]
    assert rows.over_products(lambda n: n, [], threads=4) == []


def test_every_row_is_given_once() -> None:
    for count in (1, 15, 16, 33, 100):
        seen = np.zeros(count, np.int64)

        def kernel(first: int, last: int, seen: np.ndarray = seen) -> None:
            seen[first:last] += 1

        rows.over_rows(kernel, count, 3)
        assert (seen == 1).all()


def test_items_meet_in_as_many_threads_as_were_asked_for() -> None:
    if blas.blas_threads() is None:
        pytest.skip("this BLAS cannot be told how many threads to use")
    meeting = threading.Barrier(3, timeout=30)  # a single thread would wait here for ever
    assert rows.over_products(lambda _: meeting.wait() < 3, range(6), threads=3) == [True] * 6


def test_blas_has_its_threads_back_afterwards() -> None:
    before = blas.blas_threads()
    get = None if before is None else blas._openblas()[0]
    with blas.one_thread_a_product():
        with blas.one_thread_a_product():
            assert get is None or get() == 1
        assert get is None or get() == 1
        assert blas.blas_threads() == before  # what it has when nobody asks
    assert get is None or get() == before
    with pytest.raises(ZeroDivisionError):
        rows.over_products(lambda n: 1 // n, [1, 0, 2], threads=2)
    assert get is None or get() == before


def test_a_blas_that_cannot_be_told_makes_one_product_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_openblas", lambda: None)
    assert rows.product_threads() == rows.product_threads(8) == 1
    here = threading.get_ident()
    assert rows.over_products(lambda _: threading.get_ident(), range(3)) == [here] * 3
    with blas.one_thread_a_product():
        assert blas.blas_threads() is None

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.convert.distill.texts import batch_rows, cut_rows
from edgellm.errors import UsageError


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), size=st.integers(1, 9), seed=st.integers(0, 5))
def test_every_row_comes_once_an_epoch(count: int, size: int, seed: int):
    steps = -(-2 * count // size)
    drawn = np.concatenate([batch_rows(count, size, step, seed) for step in range(steps)])
    for epoch in range(len(drawn) // count):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_the_seed_decides_the_order():
    assert (batch_rows(50, 8, 3, 1) == batch_rows(50, 8, 3, 1)).all()
    assert (batch_rows(50, 8, 3, 1) != batch_rows(50, 8, 3, 2)).any()


@settings(max_examples=60, deadline=None)
@given(ids=st.integers(9, 300), length=st.integers(2, 9), share=st.floats(0.01, 0.9))
def test_rows_hold_every_target_once(ids: int, length: int, share: float):
    if (ids - 1) // length < 2:
        return
    rows = cut_rows(np.arange(ids, dtype=np.int32), length, share, 1000)
    both = np.concatenate([rows.train, rows.held_out])
    assert both.shape[1] == length + 1
    np.testing.assert_array_equal(both[:, 1:].reshape(-1), np.arange(1, len(both) * length + 1))
    assert len(rows.train) >= 1
    assert len(rows.held_out) >= 1


def test_held_out_tokens_are_limited():
    assert len(cut_rows(np.arange(1001), 10, 0.5, 100).held_out) == 10


def test_too_little_text_is_refused():
    with pytest.raises(UsageError, match="too little text"):
        cut_rows(np.arange(20), 10, 0.1, 100)

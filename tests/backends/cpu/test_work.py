"""The shares of a team."""

from __future__ import annotations

import pytest

from edgellm.backends.cpu.work import share


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 16, 1001])
@pytest.mark.parametrize("nth", [1, 2, 3, 7])
def test_shares_cover_everything_once_and_are_balanced(count: int, nth: int) -> None:
    ranges = [share(ith, nth, count) for ith in range(nth)]
    assert [piece for first, last in ranges for piece in range(first, last)] == list(range(count))
    sizes = [last - first for first, last in ranges]
    assert max(sizes) - min(sizes) <= 1

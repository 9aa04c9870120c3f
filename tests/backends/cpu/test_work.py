"""The shares of a team, and the pieces that its threads take as they come."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.cpu.layout import BAND
from edgellm.backends.cpu.sync import SYNC_SIZE
from edgellm.backends.cpu.team import Team
from edgellm.backends.cpu.work import piece_of, share, take


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 16, 1001])
@pytest.mark.parametrize("nth", [1, 2, 3, 7])
def test_shares_cover_everything_once_and_are_balanced(count: int, nth: int) -> None:
    ranges = [share(ith, nth, count) for ith in range(nth)]
    assert [piece for first, last in ranges for piece in range(first, last)] == list(range(count))
    sizes = [last - first for first, last in ranges]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("blocks", [1, 7, 8, 128, 1001])
@pytest.mark.parametrize("nth", [1, 2, 3, 7])
@pytest.mark.parametrize("least", [1, 5, 64])
def test_pieces_cover_everything_grow_smaller_and_keep_bands_whole(blocks: int, nth: int, least: int) -> None:
    sizes, left = [], blocks
    while left > 0:
        sizes.append(piece_of(left, nth, least))
        left -= sizes[-1]
    assert left == 0
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes[:-1], default=least) >= least
    assert all(size <= least or size <= BAND or size % BAND == 0 for size in sizes)
    assert sizes[0] <= max(least, blocks // (2 * nth))


@pytest.mark.parametrize("nth", [1, 2, 3, 7])
def test_every_piece_has_one_taker(nth: int) -> None:
    team, pieces = Team(nth), 49
    taken = np.zeros((nth, pieces), np.int64)
    tickets = np.zeros(nth, np.int64)

    def step(ith: int, nth: int) -> None:
        ticket = ith
        for number in range(pieces):
            if number == ticket:
                taken[ith, number] += 1
                ticket = take(team.sync, nth)
        tickets[ith] = ticket

    assert team.run(step)
    team.close()
    assert taken.sum(axis=0).tolist() == [1] * pieces
    assert sorted(tickets) == [pieces + ith for ith in range(nth)]


def test_who_is_fast_does_the_pieces_of_who_is_slow() -> None:
    sync, ticket, done = np.zeros(SYNC_SIZE, np.int64), 0, []
    for number in range(10):  # meanwhile thread 1 does piece 1
        if number == ticket:
            done.append(number)
            ticket = take(sync, 2)
    assert done == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert (ticket, take(sync, 2)) == (10, 11)

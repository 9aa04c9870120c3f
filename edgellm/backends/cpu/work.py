"""How the threads of a team divide the work of an op.

Most ops are shared out beforehand. Linears, which are nearly all of a step, are cut in pieces that threads take as they
come: processors are not equally fast (other programs, other kinds of cores, memory that serves one better), and at
every barrier the fast ones would wait. All pieces of a step are numbered through, and a thread holds a *ticket*, the
number of the piece that it does next:

    ticket = ith                       at the step's begin
    ticket = take(sync, nth)           when it has done a piece, or as it begins one, to ask for the next in time

so that each piece has one taker, and who has no piece left in one linear holds a ticket for those behind it.
"""

from __future__ import annotations

from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.layout import BAND
from edgellm.backends.cpu.sync import TAKEN
from edgellm.simd import atomic_add


@kernel
def share(ith, nth, count):
    """The range first..last-1 of `count` pieces of work that thread `ith` of `nth` does.

    Ranges follow each other, cover everything once and differ by one piece at most; they are empty where there are more
    threads than pieces. A piece is computed alike whoever does it, so results do not depend on `nth`.
    """
    return count * ith // nth, count * (ith + 1) // nth


@kernel
def take(sync, nth):
    """The next ticket."""
    return atomic_add(sync, TAKEN, 1) + nth


@kernel
def pieces_before(left, nth, least, number, ticket):
    """How many of `left` blocks, whose first piece has `number`, lie from piece `ticket` on, none where that is behind
    them all; and the number of the first piece that was not skipped."""
    while left > 0 and number < ticket:
        left -= piece_of(left, nth, least)
        number += 1
    return left, number


@kernel
def piece_of(left, nth, least):
    """Blocks of the next piece, of the `left` that nobody has taken yet: half a thread's share, so that reading is long
    in one place and yet the threads end together [guided self-scheduling, Polychronopoulos & Kuck 1987]; whole bands
    where that is more than one, and no fewer than `least`."""
    size = left // (2 * nth)
    if size > BAND:
        size = size // BAND * BAND
    return min(max(size, least), left)

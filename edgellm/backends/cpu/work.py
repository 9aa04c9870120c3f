"""How the threads of a team divide the work of an op."""

from __future__ import annotations

from edgellm.backends.cpu.jit import kernel


@kernel
def share(ith, nth, count):
    """The range first..last-1 of `count` pieces of work that thread `ith` of `nth` does.

    Ranges follow each other, cover everything once and differ by one piece at most; they are empty where there are more
    threads than pieces. A piece is computed alike whoever does it, so results do not depend on `nth`.
    """
    return count * ith // nth, count * (ith + 1) // nth

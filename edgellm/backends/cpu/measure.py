"""What this machine can read and multiply at most: the yardsticks that kernels are measured by.

Both use the team and the vectors that a step uses. Figures are the best of many short turns: other work on the machine
can only lower a turn. Where others use its memory all the time, nothing that takes longer than a turn comes near that
best one, so reading has the average of its turns too: 28 GB/s beside 33 to 50 on a shared server.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from edgellm.backends.cpu.arena import Arena
from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.team import Team
from edgellm.backends.cpu.work import share
from edgellm.simd import (
    F32_LANES,
    dot_u7i8,
    fma,
    load_i32,
    splat_f32,
    splat_i8,
    splat_u8,
    store,
    tile,
    zero_f32,
    zero_i32,
)

#: More than the caches of any machine this is for.
READ_BYTES = 400 << 20
#: Vectors that the multiplying kernels write in the end.
SUMS = 12
_READ_PARTS = 8
_LINE = 64
_STEP = 4 * F32_LANES
_DOTS_A_TURN = 1 << 20
#: Each dot product of a lane is four products and four sums.
_DOT_OPERATIONS = 8


@kernel
def read(memory, out, first, last):
    """Go through bytes first..last-1, front to back."""
    a, b, c, d = zero_i32(), zero_i32(), zero_i32(), zero_i32()
    for at in range(first, last - 4 * _STEP + 1, 4 * _STEP):
        a ^= load_i32(memory, at)
        b ^= load_i32(memory, at + _STEP)
        c ^= load_i32(memory, at + 2 * _STEP)
        d ^= load_i32(memory, at + 3 * _STEP)
    store(out, 0, a ^ b ^ c ^ d)


@kernel
def multiply(out, times):
    """`times` int8 dot products for each lane of `SUMS` vectors, out of registers."""
    sums = tile(zero_i32(), SUMS)
    u, s = splat_u8(1), splat_i8(1)
    for _ in range(times):
        sums = dot_u7i8(sums, u, s)
    for i in range(SUMS):
        store(out, i * F32_LANES, sums[i])


@kernel
def multiply_floats(out, times, by):
    """`times` float multiply-adds for each lane of `SUMS` vectors, out of registers."""
    sums = tile(zero_f32(), SUMS)
    factor = splat_f32(by)
    for _ in range(times):
        sums = fma(sums, factor, factor)
    for i in range(SUMS):
        store(out, i * F32_LANES, sums[i])


@kernel
def _read_together(memory, out, first, last, ith, nth):
    begin, end = share(ith, nth, (last - first) // _LINE)
    read(memory, out[ith], first + begin * _LINE, first + end * _LINE)


@kernel
def _multiply_together(out, times, ith, nth):
    multiply(out[ith], times)


class Yardstick:
    """The machine's limits, as a team of threads reaches them. A context manager, for it holds memory and threads.

    Args:
        threads: how many; None as `Team` chooses.
        nbytes: to read in turn, more than the caches hold.

    Raises:
        OutOfMemoryError: there is no memory to read from.
    """

    def __init__(self, threads: int | None = None, nbytes: int = READ_BYTES) -> None:
        self._memory = Arena(nbytes).bytes
        self._memory[:] = 1  # pages that nobody wrote are one page of zeros, in the cache
        self._team = Team(threads)
        self._out = np.zeros((self._team.threads, SUMS * F32_LANES), np.int32)

    def __enter__(self) -> Yardstick:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads. A second call does nothing."""
        self._team.close()

    def read_bandwidth(self, seconds: float = 0.5) -> float:
        """Bytes a second, front to back from memory, as plain reading of vectors reaches."""
        best, _ = self.read_bandwidths(seconds)
        return best

    def read_bandwidths(self, seconds: float = 0.5) -> tuple[float, float]:
        """`read_bandwidth`, and what all its turns together reach."""
        size = len(self._memory) // _READ_PARTS // _LINE * _LINE

        def part(turn: int) -> None:
            first = turn % _READ_PARTS * size
            self._team.run(_read_together, self._memory, self._out, first, first + size)

        best, average = _turns(part, seconds)
        return size / best, size / average

    def integer_peak(self, seconds: float = 0.5) -> float:
        """Operations a second, a product or a sum each, of int8 dot products out of registers."""
        times = _DOTS_A_TURN // SUMS
        operations = _DOT_OPERATIONS * F32_LANES * SUMS * times * self._team.threads
        best, _ = _turns(lambda turn: self._team.run(_multiply_together, self._out, times), seconds)
        return operations / best


def _turns(work: Callable[[int], None], seconds: float) -> tuple[float, float]:
    """Seconds of the fastest turn of `work` and of one on average, of three and as many as `seconds` give time for."""
    work(0)
    taken: list[float] = []
    done = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < done:
        start = time.perf_counter()
        work(len(taken) + 1)
        taken.append(time.perf_counter() - start)
    return min(taken), sum(taken) / len(taken)

"""Memory for packed weights: one run of bytes on large pages, handed out front to back."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable

import numpy as np

from edgellm.backends.cpu.layout import ALIGNMENT, round_up
from edgellm.errors import OutOfMemoryError

#: Memory read from 4 KiB pages ran up to a quarter slower than from large ones (Zen 4).
LARGE_PAGE_BYTES = 2 << 20
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14
#: Python's default is a shared mapping, which Linux backs with large pages only where shmem_enabled says so.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class Arena:
    """Zeroed bytes at an address that is a multiple of the large page.

    Pages that nobody writes cost nothing, so the size may be an upper bound.

    Args:
        nbytes: what is handed out at most.

    Attributes:
        bytes: uint8 [nbytes].
        used_bytes: handed out so far.

    Raises:
        OutOfMemoryError: the system does not give so much.
    """

    def __init__(self, nbytes: int) -> None:
        self.used_bytes = 0
        try:
            memory = mmap.mmap(-1, max(nbytes, 1) + LARGE_PAGE_BYTES, **_PRIVATE)
        except (OSError, OverflowError, ValueError) as error:
            raise OutOfMemoryError("no memory for the weights", key="nbytes", found=nbytes, hint=str(error)) from error
        ask_for_large_pages(memory)
        whole = np.frombuffer(memory, np.uint8)
        first = -whole.ctypes.data % LARGE_PAGE_BYTES
        self.bytes = whole[first : first + nbytes]

    def take(self, nbytes: int) -> int:
        """The offset of `nbytes` that nobody else has, a multiple of 64.

        Raises:
            OutOfMemoryError: the arena was made smaller than what is asked of it.
        """
        offset = self.used_bytes
        if offset + nbytes > len(self.bytes):
            found, allowed = offset + nbytes, str(len(self.bytes))
            raise OutOfMemoryError("the weights are larger than their plan", key="nbytes", found=found, allowed=allowed)
        self.used_bytes = round_up(offset + nbytes, ALIGNMENT)
        return offset

    def put(self, array: np.ndarray) -> int:
        """Copy an array's bytes into the arena; their offset."""
        offset = self.take(array.nbytes)
        self.bytes[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return offset


def aligned_zeros(count: int, dtype: type) -> np.ndarray:
    """As `np.zeros`, but from the begin of a cache line on, so that no vector lies in two: NumPy aligns to 16 bytes."""
    nbytes = count * np.dtype(dtype).itemsize
    whole = np.zeros(nbytes + ALIGNMENT, np.uint8)  # numpy asks for large pages itself
    first = -whole.ctypes.data % ALIGNMENT
    return whole[first : first + nbytes].view(dtype)


def populate(memory: np.ndarray, begins: list[int], nbytes: int) -> None:
    """Have the system clear the large pages of `memory` that hold `nbytes` from each of `begins` on, ascending, while
    other threads run Python; where it cannot, whoever writes to them first waits for that as ever."""
    base = memory.ctypes.data
    runs: list[list[int]] = []
    for begin in begins:
        first = (base + begin) // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
        end = round_up(base + begin + nbytes, LARGE_PAGE_BYTES)
        if runs and first <= runs[-1][1]:
            runs[-1][1] = max(end, runs[-1][1])
        else:
            runs.append([first, end])
    advise = _advise()
    for first, end in runs:
        first, end = max(first, base), min(end, base + memory.nbytes)
        first += -first % mmap.PAGESIZE
        if advise is None or advise(first, (end - first) // mmap.PAGESIZE * mmap.PAGESIZE, _POPULATE_WRITE):
            return  # a kernel before 5.14


@functools.cache
def _advise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise


def ask_for_large_pages(memory: mmap.mmap) -> None:
    """Have the system back what nobody has touched yet with large pages, where it can."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return
    try:
        memory.madvise(advice)
    except OSError:  # a kernel without them: the pages stay small
        return

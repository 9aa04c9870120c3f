"""Memory that a step freed serves the next step, where the C library lets itself be told (glibc).

Left alone, glibc gives an array of some MiB back to the system when it is freed and asks for it anew, and the system
fills it with zeros each time: about a tenth of a forward pass.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
#: Arrays of a step are smaller, whole weights and Hessians larger: those still go back when they are freed.
_LARGEST_KEPT = 64 << 20
#: What glibc comes to by itself in a process with large arrays.
_USUAL_MMAP, _USUAL_TRIM = 32 << 20, 64 << 20
_ALL = 2**31 - 1


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, freed arrays below 64 MiB stay with the process for the next ones, until `give_back_freed` or the end.

    One arena serves all threads that begin within: other arenas cannot hold such arrays for long.
    """
    set_option, trim = _glibc()
    if set_option is None:
        yield
        return
    set_option(_ARENA_MAX, 1)
    set_option(_MMAP_THRESHOLD, _LARGEST_KEPT)
    set_option(_TRIM_THRESHOLD, _ALL)
    try:
        yield
    finally:
        set_option(_ARENA_MAX, _ALL)
        set_option(_MMAP_THRESHOLD, _USUAL_MMAP)
        set_option(_TRIM_THRESHOLD, _USUAL_TRIM)
        trim(0)


def give_back_freed() -> None:
    """Let the system have what is freed by now: before something large that the next steps' arrays do not fit into."""
    trim = _glibc()[1]
    if trim is not None:
        trim(0)


def _glibc() -> tuple[Callable[[int, int], int] | None, Callable[[int], int] | None]:
    """(mallopt, malloc_trim), None where this is no glibc."""
    if sys.platform != "linux":
        return None, None
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return None, None
    return library.mallopt, library.malloc_trim

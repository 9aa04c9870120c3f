"""How many threads NumPy's BLAS takes for one product: OpenBLAS, which NumPy's wheels carry, lets itself be told."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

#: Names of OpenBLAS's functions in NumPy's wheels from 2.0 on, in those before, and in system packages.
_NAMES = ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_", "openblas_{}_num_threads")

_lock = threading.Lock()
_inside = 0  # how many `one_thread_a_product` are entered, in all threads
_before = 1  # threads a product took when the first of them was


def blas_threads() -> int | None:
    """Threads a product takes; None where BLAS is one that does not say."""
    found = _openblas()
    if found is None:
        return None
    with _lock:
        return _before if _inside else int(found[0]())


@contextlib.contextmanager
def one_thread_a_product() -> Iterator[None]:
    """Within, every product takes the thread that asks for it and no other, so that several threads may make one each.

    It holds for the whole process, and ends when the last who entered leaves. Where BLAS cannot be told, nothing
    changes.
    """
    global _inside, _before
    found = _openblas()
    if found is None:
        yield
        return
    get, put = found
    with _lock:
        if not _inside:
            _before = int(get())
            put(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                put(_before)


@lru_cache(maxsize=1)
def _openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """(get_num_threads, set_num_threads) of the OpenBLAS that NumPy has loaded, None where it has another BLAS."""
    package = Path(np.__file__).parent
    files = [*package.parent.glob("numpy.libs/*openblas*"), *package.glob(".dylibs/*openblas*")]
    files += package.glob("*core/_multiarray_umath*")  # finds the system's, which it is linked to
    for file in files:
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(str(file))
            for name in _NAMES:
                if hasattr(library, name.format("set")):
                    return getattr(library, name.format("get")), getattr(library, name.format("set"))
    return None

"""Python's collector of cycles while kernels compile.

numba makes and keeps objects by the million, which the collector's usual thresholds have it look at again and again: a
sixth of the time of compiling (55.8 to 47.3 s on one core, 450 instead of 437 MB at the peak; without a collector 49 s
and 754 MB).
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_THRESHOLDS = (100_000, 20, 100)


@contextlib.contextmanager
def collecting_rarely() -> Iterator[None]:
    """Within the context cycles are looked for after many more objects than usual."""
    usual = gc.get_threshold()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*usual)

"""The clock that rows are timed by."""

from __future__ import annotations

from edgellm.backends.cpu.jit import kernel
from edgellm.simd import ticks


@kernel
def now():
    """What the walker reads behind a row."""
    return ticks()

"""A GPU that is not there, for tools: the fake driver in the driver's place for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgellm.backends.cuda import driver
from tools.ptx_emulator.driver import FakeDriver


@contextmanager
def pretended(fake: FakeDriver) -> Iterator[FakeDriver]:
    """The process has that driver until the end of the block."""
    real = driver.load_library
    driver.load_library = lambda: fake
    driver.forget()
    try:
        yield fake
    finally:
        driver.load_library = real
        driver.forget()

"""Memory that was freed is used again, and given back at the end."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgellm.convert import allocator

_PROGRAM = """
import resource, threading
import numpy as np
from edgellm.convert.allocator import freed_memory_kept

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    for _ in range(4):
        np.empty(10 << 20, np.uint8).fill(1)

def in_thread():
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()

with freed_memory_kept():
    in_thread()
    before = faults()
    for _ in range(8):
        in_thread()
    print(faults() - before)
"""


@pytest.mark.skipif(allocator._glibc()[0] is None, reason="no glibc")
def test_new_threads_use_what_others_freed() -> None:
    found = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 1000  # 32 arrays of 2,560 pages each would be 81,920


def test_where_the_library_cannot_be_told_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    with allocator.freed_memory_kept():
        assert np.ones(5 << 20, np.uint8).all()

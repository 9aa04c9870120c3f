"""What this process holds, for tests of what is left behind (Linux)."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NamedTuple


class Held(NamedTuple):
    """Bytes of memory of its own, open files, threads."""

    memory: int
    files: int
    threads: int

    def __sub__(self, before: Held) -> Held:
        return Held(*(now - then for now, then in zip(self, before, strict=True)))


def anonymous_bytes() -> int:
    """RssAnon and VmSwap: what mapped files hide is left out, what was swapped out is not."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "VmSwap")))


def held() -> Held:
    """What this process holds now."""
    return Held(anonymous_bytes(), len(os.listdir("/proc/self/fd")), threading.active_count())

"""How much of the machine other processes took while one was timed.

/proc/stat counts the busy time of all processors; what this process and the children it waited for used is taken away.
What is left is other people's work, and that halves results however low its priority.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

#: Share of all processors' time that others may take.
LIMIT = 0.05
_STAT = Path("/proc/stat")
_SAMPLE_SECONDS = 0.5
#: Fields of a cpu line of /proc/stat that are not work: idle, iowait; guest time is in user time already.
_IDLE, _FIELDS = (3, 4), 8


@dataclass(frozen=True)
class Times:
    """Seconds of processor time since the system started, all processors together."""

    busy: float
    total: float
    own: float


def parse(stat: str, ticks: int) -> tuple[float, float]:
    """Seconds busy and seconds in all, from the text of /proc/stat."""
    fields = [int(word) for word in stat.split("\n", 1)[0].split()[1 : 1 + _FIELDS]]
    total = sum(fields)
    return (total - sum(fields[index] for index in _IDLE)) / ticks, total / ticks


def now() -> Times:
    """The counters; `own` is this process and every child it has waited for."""
    busy, total = parse(_STAT.read_text(encoding="ascii"), os.sysconf("SC_CLK_TCK"))
    used = os.times()
    return Times(busy, total, used.user + used.system + used.children_user + used.children_system)


def others(before: Times, after: Times) -> float:
    """The share of all processors' time between two moments that went to others, 0 to 1."""
    total = after.total - before.total
    if total <= 0:
        return 0.0
    return min(max((after.busy - before.busy) - (after.own - before.own), 0.0) / total, 1.0)


def wait(limit: float, seconds: float) -> bool:
    """Wait until others leave the machine alone, at most so long; whether they did."""
    end = time.monotonic() + seconds
    while True:
        before = now()
        time.sleep(_SAMPLE_SECONDS)
        if others(before, now()) <= limit:
            return True
        if time.monotonic() >= end:
            return False

"""How many threads this process should use: the physical cores that the system lets it have.

A core counts once however many hyperthreads it has: kernels keep its vector units and its share of the bandwidth busy
with one thread. Affinity masks and the quotas of control groups (v2 and v1) are respected; a quota is rounded down,
since a team whose member is throttled waits for it at every barrier.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import UsageError

MAX_THREADS = 256


@dataclass(frozen=True)
class Cores:
    """What the process may run on.

    Attributes:
        processors: one logical processor of each physical core it may use, ascending; empty where the system does
            not tell which.
        count: physical cores allowed by number, at least 1.
        quota: processors' worth of time that the control group grants, None without a limit.
    """

    processors: tuple[int, ...]
    count: int
    quota: float | None

    @property
    def usable(self) -> int:
        """Threads that can really run at once, at least 1."""
        return self.count if self.quota is None else max(1, min(self.count, math.floor(self.quota + 1e-6)))


def detect(root: Path = Path("/")) -> Cores:
    """The cores of this process. `root` is where /sys and /proc hang, for tests."""
    quota = _quota(root)
    if not hasattr(os, "sched_getaffinity"):
        count = _darwin_cores() if sys.platform == "darwin" else None
        return Cores((), max(1, count or os.cpu_count() or 1), quota)
    allowed = sorted(os.sched_getaffinity(0))
    first_of_core: dict[str, int] = {}
    for processor in allowed:
        topology = root / f"sys/devices/system/cpu/cpu{processor}/topology"
        siblings = _text(topology / "core_cpus_list") or _text(topology / "thread_siblings_list") or str(processor)
        first_of_core.setdefault(siblings, processor)
    processors = tuple(first_of_core.values())
    return Cores(processors, max(1, len(processors)), quota)


def choose_threads(asked: int | None, cores: Cores) -> tuple[int, str | None]:
    """How many threads to run, and a sentence to show where that is more than can run at once.

    Raises:
        UsageError: not a number from 1 to `MAX_THREADS`.
    """
    if asked is None:
        return min(cores.usable, MAX_THREADS), None
    if isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= MAX_THREADS:
        raise UsageError("no such number of threads", key="threads", found=asked, allowed=f"1 to {MAX_THREADS}")
    if asked <= cores.usable:
        return asked, None
    return asked, f"{asked} threads share {cores.usable} cores: {cores.usable} would be faster"


def _quota(root: Path) -> float | None:
    """The least quota of this process's control group and all above it."""
    quotas = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in ("cpu,cpuacct", "cpu") if controllers else (".", "unified"):
            quotas += _quotas_along(root / "sys/fs/cgroup" / mount, path)
    return min(quotas, default=None)


def _quotas_along(mount: Path, path: str) -> list[float]:
    # Inside a container the path is often the host's and leads nowhere; the mount itself then is the group.
    parts = [part for part in path.split("/") if part not in ("", "..")]
    folders = [mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    found = []
    for folder in folders:
        words = _text(folder / "cpu.max").split()
        words = words or [_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[0]) and int(words[1]):
            found.append(int(words[0]) / int(words[1]))
    return found


def _darwin_cores() -> int | None:
    """Performance cores where macOS tells them apart: a slow core would hold up every barrier."""
    import ctypes

    try:
        sysctl = ctypes.CDLL(None).sysctlbyname
    except (OSError, AttributeError):
        return None
    for name in (b"hw.perflevel0.physicalcpu", b"hw.physicalcpu"):
        value, size = ctypes.c_int32(), ctypes.c_size_t(4)
        if sysctl(name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)) == 0 and value.value > 0:
            return value.value
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""

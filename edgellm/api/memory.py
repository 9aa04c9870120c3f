"""How much memory there is, and how much this process holds. Linux first, plain fallbacks elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

MIB = 1 << 20
_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60


def available_bytes() -> int | None:
    """Bytes this process can still allocate: of the machine, its control group and its own limit; None: not known."""
    found = [_machine_bytes(), _cgroup_bytes(), _rlimit_bytes()]
    known = [value for value in found if value is not None]
    return max(min(known), 0) if known else None


def reserve_bytes(available: int) -> int:
    """What to leave for everything else: a twentieth, from 32 to 512 MiB."""
    return min(max(available // 20, 32 * MIB), 512 * MIB)


def resident_bytes() -> int:
    """Bytes this process holds now; where the system does not tell, the most it ever held."""
    return _status("VmRSS") or _peak_by_rusage()


def peak_bytes() -> int:
    """The most bytes this process has held so far."""
    return _status("VmHWM") or _peak_by_rusage()


def forget_peak() -> bool:
    """Let `peak_bytes` begin anew from what is held now; False where the system cannot."""
    try:
        (_PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def total_bytes() -> int | None:
    """Bytes of memory that the machine has, None where it does not tell."""
    total = _table(_PROC / "meminfo").get("MemTotal")
    if total is not None:
        return total
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def limit_bytes() -> int | None:
    """The least limit of this process's control groups, None without one."""
    limits = [_number(folder / limit) for folder, limit, _, _ in _cgroup_folders()]
    return min((limit for limit in limits if limit is not None and limit < _UNLIMITED), default=None)


def _status(key: str) -> int | None:
    return _table(_PROC / "self" / "status").get(key)


def _table(path: Path) -> dict[str, int]:
    """Fields given in kB of a file such as /proc/meminfo, in bytes."""
    fields = {}
    for line in _text(path).splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            fields[key] = int(words[0]) * 1024
    return fields


def _machine_bytes() -> int | None:
    available = _table(_PROC / "meminfo").get("MemAvailable")
    if available is not None:
        return available
    if os.name == "nt":
        return _windows_bytes()
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        pass
    total = total_bytes()  # macOS tells the whole memory only
    return None if total is None else total // 2


def _windows_bytes() -> int | None:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "available", "c", "d", "e", "f", "g")),
        ]

    status = Status(length=ctypes.sizeof(Status))
    return status.available if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def _cgroup_bytes() -> int | None:
    """What the control group and those above it leave; cache that can be given back counts as free."""
    found = []
    for folder, limit, used, reclaimable in _cgroup_folders():
        most, now = _number(folder / limit), _number(folder / used)
        if most is None or now is None or most >= _UNLIMITED:
            continue
        words = _text(folder / "memory.stat").split()
        stat = dict(zip(words[::2], words[1::2], strict=False))
        found.append(most - now + int(stat.get(reclaimable, 0)))
    return min(found, default=None)


def _cgroup_folders() -> list[tuple[Path, str, str, str]]:
    """(folder, file of the limit, file of the use, field of what can be reclaimed) of this process's groups."""
    folders = []
    for line in _text(_PROC / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            root, names = _CGROUP, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = (
                _CGROUP / "memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        folders += [(root.joinpath(*parts[:depth]), *names) for depth in range(len(parts) + 1)]
    return folders


def _rlimit_bytes() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = _status("VmSize")
    return None if limit == resource.RLIM_INFINITY or used is None else limit - used


def _peak_by_rusage() -> int:
    try:
        import resource
        import sys
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

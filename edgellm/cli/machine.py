"""What this machine is: processor, cores and memory this process may use. Reads, never changes."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_X86 = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8")
_ARM = ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2")


def processor() -> dict[str, Any]:
    """Model name, architecture, and those of its features that kernels choose by."""
    fields = _cpuinfo()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    name = fields.get("model name") or fields.get("Model") or platform.processor() or platform.machine()
    return {
        "model": name,
        "architecture": platform.machine(),
        "features": [flag for flag in (*_X86, *_ARM) if flag in flags],
    }


def cores(root: Path = Path("/")) -> dict[str, Any]:
    """Cores of the machine, of this process's affinity, and the quota that threads are counted by (None: no limit)."""
    from edgellm.backends.cpu.cores import detect

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = detect(root).quota
    return {"machine": os.cpu_count(), "allowed": allowed, "cgroup_quota": None if quota is None else round(quota, 2)}


def memory() -> dict[str, Any]:
    """Bytes of the machine, bytes this process can still allocate, the control group's limit (None: no limit)."""
    from edgellm.api import memory

    return {
        "total_bytes": memory.total_bytes(),
        "available_bytes": memory.available_bytes(),
        "cgroup_limit_bytes": memory.limit_bytes(),
    }


def system() -> dict[str, Any]:
    """Operating system and Python."""
    return {
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": sys.executable,
        "frozen": bool(getattr(sys, "frozen", False)),
    }


def packages(names: Iterable[str]) -> dict[str, str]:
    """Installed version of each package, by name."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _cpuinfo() -> dict[str, str]:
    """Fields of the first processor."""
    fields: dict[str, str] = {}
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

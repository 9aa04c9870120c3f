"""What this machine is: processor, cores and memory this process may use, GPU driver. Reads, never changes."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_CGROUP = Path("/sys/fs/cgroup")
_X86 = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8")
_ARM = ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2")
_CUDA_LIBRARIES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
_DRIVER_VERSION_OK = 0


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
    """Bytes of the machine, bytes free for a new process, the control group's limit (None: no limit)."""
    fields = {}
    for line in _text(Path("/proc/meminfo")).splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            fields[key] = int(words[0]) * 1024
    limit = _text(_CGROUP / "memory.max").strip() or _text(_CGROUP / "memory/memory.limit_in_bytes").strip()
    bounded = int(limit) if limit.isdigit() and int(limit) < 1 << 60 else None
    return {
        "total_bytes": fields.get("MemTotal") or _sysconf_bytes(),
        "available_bytes": fields.get("MemAvailable"),
        "cgroup_limit_bytes": bounded,
    }


def cuda_driver() -> dict[str, Any]:
    """Whether NVIDIA's driver library can be loaded, and the CUDA version it offers."""
    for name in _CUDA_LIBRARIES:
        try:
            library = ctypes.CDLL(name)
            version = ctypes.c_int(0)
            if library.cuDriverGetVersion(ctypes.byref(version)) == _DRIVER_VERSION_OK:
                return {"found": True, "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}"}
            return {"found": True, "cuda": None}
        except (OSError, AttributeError):
            continue
    return {"found": False, "cuda": None}


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


def _sysconf_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

"""The NVIDIA GPUs of this machine and a Jetson's power mode and clocks. Reads, never changes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from edgellm.errors import EdgeLLMError

_NVPMODEL_SECONDS = 5


def driver() -> dict[str, Any]:
    """Whether NVIDIA's driver library is there, and the newest CUDA version that it serves."""
    from edgellm.backends.cuda.driver import driver as loaded

    try:
        major, minor = loaded().version
    except EdgeLLMError as error:
        return {"found": False, "cuda": None, "why": str(error)}
    return {"found": True, "cuda": f"{major}.{minor}"}


def gpus() -> list[dict[str, Any]]:
    """What each GPU is and whether it does what it is told; none where there is no driver."""
    from edgellm.backends.cuda.device import count_devices

    try:
        count = count_devices()
    except EdgeLLMError:
        return []
    return [_gpu(index) for index in range(count)]


def _gpu(index: int) -> dict[str, Any]:
    from edgellm.backends.cuda.device import open_device, properties
    from edgellm.backends.cuda.self_test import self_test

    device = f"cuda:{index}"
    try:
        found = properties(index)
        free = open_device(index).free_bytes()
    except EdgeLLMError as error:
        return {"device": device, "self_test": str(error)}
    return {
        "device": device,
        "name": found.name,
        "capability": f"{found.capability // 10}.{found.capability % 10}",
        "memory_bytes": found.total_bytes,
        "free_bytes": free,
        "shares_memory": found.integrated,
        "multiprocessors": found.multiprocessors,
        "clock_mhz": found.attributes["clock_khz"] // 1000,
        "memory_clock_mhz": found.attributes["memory_clock_khz"] // 1000,
        "memory_bus_bits": found.attributes["memory_bus_bits"],
        "self_test": self_test(index) or "ok",
    }


def jetson(root: Path = Path("/")) -> dict[str, Any] | None:
    """A Jetson's model, release, power mode and clocks; None on other machines. What cannot be read is left out."""
    release = _text(root / "etc/nv_tegra_release")
    model = _text(root / "proc/device-tree/model").rstrip("\0")
    if not release and "Jetson" not in model:
        return None
    facts: dict[str, Any] = {"model": model or None, "release": release.split(", GCID")[0].lstrip("# ") or None}
    mode = _power_mode()
    if mode:
        facts["power_mode"] = mode
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if "gpu" in folder.name or folder.name.endswith((".ga10b", ".gv11b", ".gp10b")):
            clocks = {key: _megahertz(folder / f"{key}_freq") for key in ("min", "cur", "max")}
            facts["gpu_clock_mhz"] = {key: value for key, value in clocks.items() if value is not None}
    memory = _megahertz(root / "sys/kernel/debug/bpmp/debug/clk/emc/rate")
    if memory is not None:
        facts["memory_clock_mhz"] = memory
    return {key: value for key, value in facts.items() if value is not None}


def _power_mode() -> str | None:
    """What `nvpmodel -q` prints, on one line."""
    try:
        done = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=_NVPMODEL_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return " ".join(done.stdout.split()) or None


def _megahertz(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) // 1_000_000 if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

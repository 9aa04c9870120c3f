"""`setup`: one virtual environment a peer, so that nobody's packages are anybody else's.

llama.cpp is compiled from its source package for this very processor; the others come as wheels, which choose their
kernels at run time. Models of OpenVINO and CTranslate2 are written in an environment of their own ("make"), for it
needs torch, and what torch costs at import must not count as the engines' start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.peers.places import REPOSITORY, Work

#: Packages by environment.
PACKAGES = {
    "llama.cpp": ("llama-cpp-python", "gguf"),
    "openvino": ("openvino-genai", "numpy"),
    "ctranslate2": ("ctranslate2", "numpy"),
    "make": ("torch==2.13.0", "optimum-intel[openvino]", "nncf", "openvino-tokenizers", "ctranslate2"),
}
#: torchvision that comes along belongs to another torch, and transformers cannot be imported beside it.
_UNWANTED = {"make": "torchvision"}
_CMAKE = "-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAMA_CURL=OFF -DMTMD_BUILD=OFF -DLLAVA_BUILD=OFF"
#: Flags of /proc/cpuinfo and what llama.cpp's system info calls them once compiled for them.
_FEATURES = {
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
    "avx_vnni": "AVX_VNNI",
}
_SYSTEM_INFO = "from tools.peers.workers.llama_cpp import library; print(library().llama_print_system_info().decode())"


class SetupFailed(Exception):
    """A step of setting up did not work; the text says which."""


def set_up(name: str, work: Work, jobs: int, say: Callable[[str], None]) -> None:
    """Make an environment, or bring the one there is up to date.

    Raises:
        SetupFailed: packages cannot be had or built, or a build leaves out what this processor can do.
    """
    python = work.python(name)
    log = work.root / f"setup-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(work.environment(name))], log)
    say(f"{name}: {', '.join(PACKAGES[name])} (log: {log})")
    command = [str(python), "-m", "pip", "install", "--verbose", *PACKAGES[name]]
    if name == "llama.cpp":
        command += ["--no-binary", "llama-cpp-python"]
    _run(command, log, CMAKE_ARGS=_CMAKE, CMAKE_BUILD_PARALLEL_LEVEL=str(jobs))
    if name in _UNWANTED:
        _run([str(python), "-m", "pip", "uninstall", "--yes", _UNWANTED[name]], log)
    if name == "llama.cpp":
        say(f"{name}: {check_native(python)}")


def check_native(python: Path) -> str:
    """What llama.cpp was compiled for. Raises `SetupFailed` where the processor can more."""
    info = _run([str(python), "-c", _SYSTEM_INFO], None).strip()
    lacking = left_out(info, Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace"))
    if lacking:
        raise SetupFailed(f"llama.cpp was compiled without {', '.join(lacking)}: {info}")
    return info


def left_out(system_info: str, cpuinfo: str) -> list[str]:
    """Features that the processor has and the build has not."""
    flags: set[str] = set()
    for line in cpuinfo.splitlines():
        if line.startswith("flags"):
            flags |= set(line.split(":", 1)[1].split())
            break
    fields = system_info.replace(":", "|").split("|")
    built = {field.split("=")[0].strip() for field in fields if field.strip().endswith("= 1")}
    return [name for flag, name in _FEATURES.items() if flag in flags and name not in built]


def versions(name: str, work: Work) -> dict[str, Any]:
    """Installed packages of an environment that matter."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: have.get(n.lower()) for n in sys.argv[1:]}))"
    )
    names = [package.split("==")[0].split("[")[0] for package in PACKAGES[name]]

    return json.loads(_run([str(work.python(name)), "-c", code, *names], None))


def _run(command: list[str], log: Path | None, **variables: str) -> str:
    """Standard output; with `log` all output goes there instead. Raises `SetupFailed`."""
    environment = {**os.environ, **variables}
    if log is None:
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
        said = done.stderr
    else:
        with log.open("a", encoding="utf-8") as file:
            done = subprocess.run(command, stdout=file, stderr=file, cwd=REPOSITORY, env=environment)
        said = f"see {log}"
    if done.returncode:
        raise SetupFailed(f"{' '.join(command[:4])} ...: {said.strip()[-500:]}")
    return done.stdout or ""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edgellm.backends import cpu, find

ROOT = Path(__file__).parents[3]


def test_the_backend_is_found_whatever_was_imported_before() -> None:
    code = (
        "import sys, edgellm.backends.cpu as package\n"
        "print('numba' in sys.modules)\n"
        "from edgellm.backends.cpu.backend import CpuBackend\n"
        "from edgellm.backends import find\n"
        "print(type(find('cpu')) is type(package.backend) is CpuBackend, find('cpu') is package.backend)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "True", "True"]


def test_there_is_one_backend_and_it_runs_anywhere() -> None:
    assert find("cpu") is find("cpu") is cpu.backend
    assert (cpu.backend.name, cpu.backend.unavailable()) == ("cpu", None)

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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

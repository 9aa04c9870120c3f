"""The tests of the ops for every ISA that this machine can run, and without the JIT, each in its own process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from numba import config

from edgellm.simd import TARGET

ROOT = Path(__file__).parent.parent.parent
OPS = ["tests/simd/test_float_ops.py", "tests/simd/test_integer_ops.py", "tests/simd/test_moving_ops.py"]
# Compiled as for processors that have no more than the ISA, where LLVM knows one by name.
PROCESSORS = {
    "avx2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2"},
    "generic": {"NUMBA_CPU_NAME": "generic"},
}


def clean(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "EDGELLM_"))}
    return {**kept, **settings, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))}


def run_ops(settings: dict[str, str]) -> str:
    """The ISA that all ops passed with."""
    code = "import sys, pytest; from edgellm.simd import TARGET; code = pytest.main(sys.argv[1:]); "
    code += "print(TARGET.isa); sys.exit(code)"
    command = [sys.executable, "-c", code, "-p", "no:cacheprovider", *OPS]
    shown = subprocess.run(command, cwd=ROOT, env=clean(**settings), capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stdout[-3000:] + shown.stderr[-1000:]
    assert re.search(r"\d\d passed", shown.stdout), shown.stdout
    return shown.stdout.split()[-1]


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="the JIT is off in this process too")
def test_every_isa_of_this_machine() -> None:
    others = [isa for isa in TARGET.available if isa != TARGET.isa]
    for isa in others:
        assert run_ops({"EDGELLM_ISA": isa, **PROCESSORS.get(isa, {})}) == isa


def test_without_the_jit() -> None:
    assert run_ops({"NUMBA_DISABLE_JIT": "1"}) in TARGET.available

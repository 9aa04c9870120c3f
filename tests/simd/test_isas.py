"""The tests of the ops for every ISA that this machine can run, and without the JIT, each in its own process."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
from numba import config

from edgellm.simd import TARGET
from tests.ahead import ROOT, Process

OPS = ["tests/simd/test_float_ops.py", "tests/simd/test_integer_ops.py", "tests/simd/test_moving_ops.py"]
# Compiled as for processors that have no more than the ISA, where LLVM knows one by name.
PROCESSORS = {
    "avx2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2"},
    "generic": {"NUMBA_CPU_NAME": "generic"},
}


def clean(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "EDGELLM_"))}
    return {**kept, **settings, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))}


CODE = """
import sys, pytest
from edgellm.simd import TARGET
code = pytest.main(sys.argv[1:])
print(TARGET.isa)
sys.exit(code)
"""
OTHERS = [isa for isa in TARGET.available if isa != TARGET.isa and not config.DISABLE_JIT]


def all_ops(**settings: str) -> Process:
    """Tests the ops, and says at the end with which ISA."""
    return Process(("-c", CODE, "-p", "no:cacheprovider", *OPS), clean(**settings))


def isa_that_passed(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-1000:]
    assert re.search(r"\d\d passed", process.stdout), process.stdout
    return process.stdout.split()[-1]


@pytest.mark.parametrize(
    ("isa", "process"),
    [(isa, all_ops(EDGELLM_ISA=isa, **PROCESSORS.get(isa, {}))) for isa in OTHERS],
    ids=OTHERS,
    indirect=["process"],
)
def test_every_isa_of_this_machine(isa: str, process: subprocess.CompletedProcess[str]) -> None:
    assert isa_that_passed(process) == isa


@pytest.mark.parametrize("process", [all_ops(NUMBA_DISABLE_JIT="1")], ids=["process"], indirect=True)
def test_without_the_jit(process: subprocess.CompletedProcess[str]) -> None:
    assert isa_that_passed(process) in TARGET.available

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


OTHERS = [isa for isa in TARGET.available if isa != TARGET.isa and not config.DISABLE_JIT]
SETTINGS = {isa: {"EDGELLM_ISA": isa, **PROCESSORS.get(isa, {})} for isa in OTHERS}
SETTINGS["without the JIT"] = {"NUMBA_DISABLE_JIT": "1"}
CODE = """
import sys, pytest
from edgellm.simd import TARGET
code = pytest.main(sys.argv[1:])
print(TARGET.isa)
sys.exit(code)
"""
COMMAND = ("-c", CODE, "-p", "no:cacheprovider", *OPS)
PROCESSES = [(name, Process(COMMAND, clean(**settings))) for name, settings in SETTINGS.items()]


@pytest.mark.parametrize(("name", "process"), PROCESSES, ids=SETTINGS, indirect=["process"])
def test_every_isa_of_this_machine_and_none(name: str, process: subprocess.CompletedProcess[str]) -> None:
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-1000:]
    assert re.search(r"\d\d passed", process.stdout), process.stdout
    assert process.stdout.split()[-1] in ([name] if name in OTHERS else TARGET.available)

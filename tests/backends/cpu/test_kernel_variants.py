"""The same tests of kernels where vectors are others, or plain Python: in processes of their own, for both are chosen
at import. Without the JIT every access to memory is checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.simd import TARGET
from tests.backends.cpu.kernels import WITHOUT_JIT

ROOT = Path(__file__).resolve().parents[3]
FILES = [f"tests/backends/cpu/test_{name}.py" for name in ("norm", "rope", "activation", "cache", "attention")]
VARIANTS = {"without the JIT": {"NUMBA_DISABLE_JIT": "1"}}
VARIANTS |= {isa: {"EDGELLM_ISA": isa} for isa in ("avx2", "generic") if isa in TARGET.available and isa != TARGET.isa}


@pytest.mark.skipif(WITHOUT_JIT or "EDGELLM_ISA" in os.environ, reason="this is a variant")
@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_of_another_kind(variant: str) -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *FILES]
    environ = {**os.environ, **VARIANTS[variant], "OMP_NUM_THREADS": "1"}
    shown = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert shown.returncode == 0, shown.stdout[-4000:] + shown.stderr[-2000:]
    assert "[100%]" in shown.stdout

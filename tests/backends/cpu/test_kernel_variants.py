"""The same tests of kernels where vectors are others, or plain Python: in processes of their own, for both are chosen
at import. Without the JIT every access to memory is checked."""

from __future__ import annotations

import subprocess

import pytest

from tests.backends.cpu.kernels import elsewhere

FILES = [f"tests/backends/cpu/test_{name}.py" for name in ("norm", "rope", "activation", "cache", "attention")]
COMMAND = ("-m", "pytest", "-x", "-p", "no:cacheprovider", *FILES)


@pytest.mark.parametrize(("isa", "process"), elsewhere(*COMMAND), indirect=["process"])
def test_kernels_of_another_kind(isa: str, process: subprocess.CompletedProcess[str]) -> None:
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr[-2000:]
    assert "[100%]" in process.stdout

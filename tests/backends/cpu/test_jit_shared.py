"""Kernels whose code their callers share: compiled, kept, loaded again in any order, and taken without numba."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.backends.cpu import walker
from tests.backends.cpu.kernels import WITHOUT_JIT

compiled_only = pytest.mark.skipif(WITHOUT_JIT, reason="nothing is compiled")

_PROGRAM = """
import sys, types
from edgellm.backends.cpu import jit_progress, jit_shared
from edgellm.backends.cpu.native import Native

module = types.ModuleType("edgellm.made_up")
sys.modules[module.__name__] = module
exec('''
from edgellm.backends.cpu.jit import kernel

@kernel(shared=True)
def inner(x):
    return x * 3 + 1

@kernel(shared=True)
def middle(x):
    return inner(x) + inner(x + 1)

@kernel
def outer(x):
    return middle(x) * 2
''', module.__dict__)
for name in sys.argv[1:]:
    function = Native(module.__name__, name[1:]) if name[0] == "*" else getattr(module, name)
    print(name, int(function(5)), end=" ")
print(len(jit_shared._objects), jit_progress.statistics().compiled, jit_progress.statistics().loaded)
"""


@compiled_only
def test_code_is_shared_kept_and_found_again(tmp_path: Path) -> None:
    def run(*names: str) -> str:
        environ = {**os.environ, "EDGELLM_CACHE_DIR": str(tmp_path), "NUMBA_DISABLE_JIT": "0"}
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *names], env=environ, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()

    assert run("outer") == "outer 70 2 3 0"
    assert run("outer") == "outer 70 2 0 1"  # with it came what it calls
    assert run("outer", "inner", "middle", "outer") == "outer 70 inner 16 middle 35 outer 70 2 2 2"  # for Python
    assert run("inner", "middle", "outer") == "inner 16 middle 35 outer 70 2 0 3"
    assert run("*outer").startswith("*outer 70 ")
    assert run("*outer") == "*outer 70 0 0 1"  # machine code alone, with that of both


@compiled_only
@pytest.mark.parametrize("name", [*walker.APART, "op_attention", "run_linear"])
def test_the_walkers_ops_are_shared(name: str) -> None:
    """Else each is optimized and translated again in every kernel above it, 15 s of a first start."""
    assert getattr(walker, name)._cache._shared

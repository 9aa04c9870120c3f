"""Which ISA is chosen for which processor, and who may force another."""

from __future__ import annotations

import subprocess
import sys

import llvmlite.binding as llvm
import pytest

from edgellm.errors import UsageError
from edgellm.simd import target
from tests.simd.test_isas import ROOT, clean

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
PROCESSORS = [
    (X86, "znver4", "", "avx512vnni"),
    (X86, "icelake-client", "", "avx512vnni"),
    (X86, "alderlake", "", "avxvnni"),
    (X86, "skylake-avx512", "", "avx2"),
    (X86, "haswell", "", "avx2"),
    (X86, "znver4", "-avx512f,-avx512vnni", "avx2"),  # registers that the system does not save
    (X86, "ivybridge", "", "generic"),
    (X86, "x86-64", "", "generic"),
    (ARM, "cortex-a78ae", "", "neon-dotprod"),
    (ARM, "apple-m1", "", "neon-dotprod"),
    (ARM, "cortex-a72", "", "neon"),
    (ARM, "cortex-a72", "+dotprod", "neon-dotprod"),
    ("riscv64-unknown-linux-gnu", "generic-rv64", "", "generic"),
]


@pytest.mark.parametrize(("triple", "cpu", "features", "isa"), PROCESSORS)
def test_the_compiler_tells_the_isa(triple: str, cpu: str, features: str, isa: str) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    available, _ = target.probe(triple, cpu, features)
    assert available[0] == isa
    assert available[-1] == "generic"
    assert list(available) == [name for name in target.VECTOR_BYTES if name in available]


def test_an_isa_can_be_forced_if_the_machine_runs_it() -> None:
    assert target.choose(("avx2", "generic"), {}) == "avx2"
    assert target.choose(("avx2", "generic"), {"EDGELLM_ISA": ""}) == "avx2"
    assert target.choose(("avx2", "generic"), {"EDGELLM_ISA": " Generic "}) == "generic"


@pytest.mark.parametrize(("forced", "what"), [("avx512vnni", "cannot run"), ("sse9", "no such")])
def test_an_isa_that_cannot_be_is_an_error(forced: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as raised:
        target.choose(("avx2", "generic"), {"EDGELLM_ISA": forced})
    assert raised.value.key == "EDGELLM_ISA"
    assert raised.value.found == forced
    assert raised.value.allowed == "avx2, generic"


def test_the_lanes_follow_from_the_isa() -> None:
    assert target.TARGET.isa in target.TARGET.available
    assert target.F32_LANES == target.I32_LANES == target.TARGET.vector_bytes // 4
    assert target.TARGET.vector_bytes // 2 == target.I16_LANES
    assert target.I8_LANES == target.U8_LANES == target.TARGET.vector_bytes


def test_the_package_does_not_import_simd() -> None:
    code = "import sys, edgellm; print([name for name in ('numba', 'edgellm.simd') if name in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean(), capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"

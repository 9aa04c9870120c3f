"""numba's settings and processor, without numba and with it: the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core import config

from edgellm.simd import settings, target
from tests.ahead import ROOT
from tests.simd.test_isas import clean

CODE = """
import json, sys
if "numba" in sys.argv:
    import numba
from edgellm.simd import settings
found = {name: settings.setting(name) for name in settings.DEFAULTS} | {"processor": settings.processor()}
from edgellm.backends.cpu import jit_digest
found["digest"] = jit_digest.digest()
print(json.dumps(found | {"numba": "numba" in sys.modules}))
"""


def found(*arguments: str, cwd: Path = ROOT, **environ: str) -> dict:
    command, env = [sys.executable, "-c", CODE, *arguments], clean(**environ)
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd, env=env).stdout)


def test_numba_would_say_the_same() -> None:
    without, with_numba = found(), found("numba")
    assert (without.pop("numba"), with_numba.pop("numba")) == (False, True)
    assert without == with_numba


@pytest.mark.parametrize(
    ("variable", "value", "name", "expected"),
    [
        ("NUMBA_OPT", "max", "OPT", "max"),
        ("NUMBA_BOUNDSCHECK", "1", "BOUNDSCHECK", 1),
        ("NUMBA_CPU_NAME", "generic", "CPU_FEATURES", ""),
    ],
)
def test_variables_are_heard(variable: str, value: str, name: str, expected: object) -> None:
    said = found(**{variable: value})
    assert said[name] == expected
    assert said["numba"]
    assert said["digest"] != found()["digest"]


def test_a_program_that_sets_numba_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CPU_NAME", "haswell")
    monkeypatch.setattr(config, "CPU_FEATURES", "+avx2")
    assert settings.processor()[1:] == ("haswell", "+avx2")
    assert settings.processor()[0] == target.llvm.get_process_triple()


def test_a_processor_that_numba_doubts_is_its_own_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_numba_knows_better", lambda: False)
    monkeypatch.setattr(settings.llvm, "get_host_cpu_name", lambda: "ivybridge")
    monkeypatch.setattr("numba.core.codegen.get_host_cpu_features", lambda: "-avx")
    assert settings.processor()[1:] == ("ivybridge", "-avx")


def test_a_processor_that_llvm_cannot_ask_has_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError

    monkeypatch.setattr(settings, "_numba_knows_better", lambda: False)
    monkeypatch.setattr(settings.llvm, "get_host_cpu_features", refuse)
    assert settings.processor()[2] == ""

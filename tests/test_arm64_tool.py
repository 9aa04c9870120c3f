"""`tools/test_arm64.py` without an emulator: what its processes get, how a run ends, what setting up lacks."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tools import test_arm64 as tool
from tools.test_arm64 import ROOT, SKIPPED, TESTS, Machine, SetupError, run_tests


class Here(Machine):
    """This machine instead of an emulated one."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.wrapper = Path(sys.executable)

    def environ(self, variant: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT)}


def suite(folder: Path, body: str) -> list[str]:
    """pytest's arguments for one file of tests."""
    path = folder / "test_some.py"
    path.write_text(f"import time\n\n\n{body}")
    return [str(path), "--rootdir", str(folder), "-o", "addopts="]


@pytest.mark.parametrize(("claim", "code"), [("True", 0), ("False", 1)])
def test_a_run_ends_with_its_code_and_figures(
    claim: str, code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = f"def test_one():\n    assert {claim}\n\n\ndef test_two():\n    assert True\n"
    assert run_tests(Here(tmp_path), "plain", suite(tmp_path, body), 60.0) == code
    shown = capfd.readouterr().out.splitlines()
    assert shown[0].startswith("plain: ")
    figures = "2 passed" if code == 0 else "1 failed, 1 passed"
    assert shown[-1].startswith(f"plain: exit code {code}, {figures}, ")


def test_a_test_that_hangs_ends_when_time_is_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert run_tests(Here(tmp_path), "plain", suite(tmp_path, "def test_it():\n    time.sleep(300)\n"), 3.0) == 124
    assert time.monotonic() - started < 120
    assert "plain: exit code 124, no end" in capfd.readouterr().out


def test_a_machine_that_does_not_start_ends_the_run(tmp_path: Path) -> None:
    machine = Here(tmp_path)
    machine.wrapper = tmp_path / "python"
    machine.wrapper.write_text("#!/bin/sh\nexit 3\n")
    machine.wrapper.chmod(0o755)
    assert run_tests(machine, "dotprod", [], 60.0) == 3


def test_processes_get_the_processor_and_nothing_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    monkeypatch.setenv("EDGELLM_ISA", "avx2")
    machine = Machine(tmp_path)
    dotprod, plain = machine.environ("dotprod"), machine.environ("plain")
    assert not {"NUMBA_DISABLE_JIT", "EDGELLM_ISA"} & set(dotprod)
    assert (dotprod["NUMBA_CPU_FEATURES"], plain["NUMBA_CPU_FEATURES"]) == ("+dotprod", "")
    assert dotprod["EDGELLM_CACHE_DIR"] == str(tmp_path / "jit")
    assert dotprod["PYTHONPATH"].split(os.pathsep) == [str(machine.site), str(ROOT)]
    machine.site.mkdir()
    (machine.root / "usr/bin").mkdir(parents=True)
    with pytest.raises(SetupError, match="no Python"):
        _ = machine.python
    for name in ("python3", "python3.11"):
        (machine.root / "usr/bin" / name).touch()
    machine._write_wrapper()
    assert str(machine.root / "usr/bin/python3.11") in machine.wrapper.read_text()
    assert os.access(machine.wrapper, os.X_OK)
    assert str(machine.wrapper) in (machine.site / "sitecustomize.py").read_text()


def test_another_system_is_told_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["test_arm64", "--work", str(tmp_path)])
    assert tool.main() == 2
    assert "apt-get is needed" in capsys.readouterr().err


def test_the_usual_selection_names_files_and_tests_that_exist() -> None:
    assert all((ROOT / path).exists() for path in TESTS)
    words = SKIPPED.replace("not ", "").split(" and ")
    text = "".join(path.read_text() for name in TESTS for path in sorted((ROOT / name).rglob("*.py")) or [ROOT / name])
    assert all(word in text for word in words)

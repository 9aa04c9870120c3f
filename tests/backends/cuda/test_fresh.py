"""Kernels compiled from their sources at run time: kept between runs, the same text as what is shipped."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from edgellm.backends.cuda.shipped import header
from edgellm.errors import BackendUnavailable, UsageError

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles, is not installed")
fresh = importlib.import_module("edgellm.backends.cuda.ptx.fresh")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that were compiled."""
    names: list[str] = []
    real = fresh.compiled_body

    def compiled_body(kernel: Any, target: int) -> str:
        names.append(f"{kernel.name}-{target}")
        return real(kernel, target)

    monkeypatch.setattr(fresh, "compiled_body", compiled_body)
    return names


def test_what_was_compiled_is_kept(tmp_path: Path, counted: list[str]) -> None:
    text = fresh.Fresh(tmp_path / "kept").module(["add"], 87)
    assert text.startswith(header(80) + ".visible .entry add(")
    assert fresh.Fresh(tmp_path / "kept").module(["add"], 89) == text
    assert counted == ["add-80"]
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path: Path, counted: list[str]) -> None:
    (tmp_path / "file").write_text("")
    code = fresh.Fresh(tmp_path / "file" / "below")
    assert code.module(["add"], 75) == code.module(["add"], 75)
    assert counted == ["add-75", "add-75"]


def test_what_cannot_be_compiled_is_refused(tmp_path: Path) -> None:
    code = fresh.Fresh(tmp_path)
    with pytest.raises(UsageError, match="nothing"):
        code.module(["nothing"], 80)
    with pytest.raises(BackendUnavailable, match="add"):
        code.module(["add"], 61)
    assert code.entries["add"].threads == fresh.all_kernels()["add"].threads

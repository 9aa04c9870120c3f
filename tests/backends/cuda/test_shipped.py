"""The code that the package carries: read, put together, and what the sources say now."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgellm.backends.cuda.kernels.sources import digest
from edgellm.backends.cuda.shipped import FORMAT, INDEX, shipped
from edgellm.errors import BackendUnavailable, EdgeLLMError, InputError, UsageError

REPOSITORY = Path(__file__).parent.parent.parent.parent
BUILD = "python -m tools.build_cuda_kernels"


def row(lowest: int, highest: int | None, code: dict[str, list[int]]) -> dict[str, Any]:
    parameters = [["x", "f32*"], ["count", "u32"]]
    declared = {"parameters": parameters, "threads": 128, "min_blocks": 1, "lowest": lowest, "highest": highest}
    return {**declared, "dynamic_shared": 0, "code": code, "sources": "0", "module": "m"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Kernels: one the same everywhere, one better from 8.0 on, one of 8.0 to 8.9 alone, one with a line for 9.0 on."""
    files = {"sm_70.ptx": b"<same><old>a\n//90 wait;\nb\n", "sm_80.ptx": b"<new><ampere>"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    targets = {name[3:5]: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    kernels = {
        "waits": row(70, None, {"70": [11, 16]}),
        "same": row(70, None, {"70": [0, 6]}),
        "better": row(70, None, {"70": [6, 5], "80": [0, 5]}),
        "ampere": row(80, 89, {"80": [5, 8]}),
    }
    (tmp_path / INDEX).write_text(json.dumps({"format": FORMAT, "targets": targets, "kernels": kernels}))
    return tmp_path


def test_a_module_has_each_kernel_as_the_device_likes_it_best(folder: Path) -> None:
    code = shipped(folder)
    head = ".version 7.4\n.target sm_{}\n.address_size 64\n"
    assert code.module(["same", "better"], 72) == head.format(70) + "<old><same>"
    assert code.module(["same", "better", "same"], 87) == head.format(80) + "<new><same>"
    assert code.module(["same"], 121) == head.format(70) + "<same>"
    assert code.entries["same"].parameters[1].bytes == 4
    assert code.entries["same"].parameters[0].pointer


def test_a_line_that_waits_for_newer_devices_is_there_for_them(folder: Path) -> None:
    code = shipped(folder)
    assert code.module(["waits"], 89).splitlines()[1:] == [".target sm_70", ".address_size 64", "a", "//90 wait;", "b"]
    newer = [".version 7.8", ".target sm_90", ".address_size 64", "a", "wait;", "b"]
    assert code.module(["waits"], 120).splitlines() == newer
    assert code.module(["same"], 90).splitlines()[1] == ".target sm_70"


@pytest.mark.parametrize(("name", "capability"), [("ampere", 75), ("ampere", 90), ("same", 61)])
def test_a_device_that_does_not_run_a_kernel_is_refused(folder: Path, name: str, capability: int) -> None:
    with pytest.raises(BackendUnavailable, match=name):
        shipped(folder).module([name], capability)


def test_a_kernel_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="nothing"):
        shipped(folder).module(["nothing"], 80)


def test_a_damaged_installation_says_so(folder: Path) -> None:
    (folder / "sm_80.ptx").write_bytes(b"<new><other!>")
    with pytest.raises(EdgeLLMError, match=r"sm_80\.ptx"):
        shipped(folder)
    (folder / INDEX).write_text('{"format": 99}')
    with pytest.raises(EdgeLLMError, match="format"):
        shipped.__wrapped__(folder)
    with pytest.raises(InputError):
        shipped(folder / "elsewhere")


def test_the_shipped_code_is_what_the_sources_say() -> None:
    code = shipped()
    stale = sorted(name for name, module in code.modules.items() if digest(module) != code.sources[name])
    assert not stale, f"{BUILD}: sources have changed since"
    for name, entry in code.entries.items():
        for target, text in code.texts[name].items():
            assert entry.runs_on(target)
            assert f".visible .entry {name}(" in text
            assert text.count(".param .") == len(entry.parameters), name


def test_the_runtime_needs_no_compiler() -> None:
    names = [path.stem for path in sorted((REPOSITORY / "edgellm/backends/cuda").glob("*.py"))]
    modules = ", ".join(f"edgellm.backends.cuda.{name}" for name in names if name != "__init__")
    code = (
        f"import sys, edgellm.backends.cuda, {modules}; print([m for m in ('numba', 'llvmlite') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert shown.stdout.strip() == "[]"

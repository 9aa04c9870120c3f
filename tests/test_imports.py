"""Imports go one way: the table of the rooms, held by reading every module's syntax tree."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "edgellm"
ROOT = {"errors", "jsonfile", "sidefiles", "folders", "_version"}
WAIST = {"backends.interface", "backends.slots"}
ALLOWED = {
    "formats": ROOT,
    "text": ROOT,
    "model": ROOT | {"formats"},
    "simd": {"errors"},
    "backends": ROOT | {"model", "formats"} | WAIST,
    "backends.reference": ROOT | {"model", "formats"} | WAIST,
    "backends.cpu": ROOT | {"model", "formats", "simd"} | WAIST,
    "backends.cuda": ROOT | {"model", "formats"} | WAIST,
    "engine": ROOT | {"text", "model"} | WAIST,
    "convert": ROOT | {"formats", "text", "model"} | WAIST,
}
OUTSIDE = {"api", "cli", "serve"}  # may import anything; of the rooms above nobody imports them
THIRD_PARTY = {
    "formats": {"numpy", "safetensors"},
    "text": {"tokenizers", "sentencepiece", "jinja2", "numpy"},
    "model": {"numpy"},
    "convert": {"numpy", "numba", "safetensors", "tomli", "matplotlib"},
    "backends": {"numpy"},
    "backends.reference": {"numpy"},
    "backends.cuda": {"numpy", "numba", "llvmlite", "cuda"},  # all but numpy in ptx/ alone
    "engine": {"numpy", "safetensors"},
}


def room_of(module: str) -> str:
    """`backends.cpu` for what lies in a backend's folder, else the first part; "" for the package itself."""
    parts = module.split(".")
    if parts[0] == "backends" and len(parts) > 1 and (PACKAGE / "backends" / parts[1]).is_dir():
        return ".".join(parts[:2])
    return parts[0]


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, `from a import b` as both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def permitted(target: str, allowed: set[str]) -> bool:
    return any(target == name or target.startswith(name + ".") for name in allowed)


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_imports_only_what_its_room_may(module: str, path: Path) -> None:
    room = room_of(module)
    names = imported(path)
    own = {name.removeprefix("edgellm.") for name in names if name.startswith("edgellm.")}
    if module in ROOT:
        assert all(permitted(target, ROOT) for target in own)
        return
    if room in OUTSIDE or module in ("", "__main__"):
        return
    assert room in ALLOWED, f"no row in the table for {room}"
    for target in own:
        target_is_waist = target.startswith("backends.") and room_of(target) == "backends"
        same_room = room_of(target) == room and (
            not room.startswith("backends") or room != "backends" or target_is_waist
        )
        prefix_of_waist = target == "backends"
        assert same_room or prefix_of_waist or permitted(target, ALLOWED[room]), f"{module} imports {target}"
    if room in THIRD_PARTY:
        outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"edgellm", "__future__"}
        assert outside <= THIRD_PARTY[room], f"{module} imports {outside - THIRD_PARTY[room]}"


def test_only_the_ops_of_the_cuda_kernels_know_the_compiler() -> None:
    for module, path in modules():
        if room_of(module) == "backends.cuda" and not module.startswith("backends.cuda.ptx"):
            assert not {name.split(".")[0] for name in imported(path)} & {"numba", "llvmlite", "cuda"}, module


def test_nobody_imports_torch() -> None:
    for module, path in modules():
        assert not any(name.split(".")[0] in ("torch", "transformers") for name in imported(path)), module


@pytest.mark.parametrize("room", ["", ".cli.main"])
def test_importing_costs_nothing(room: str) -> None:
    heavy = ["numpy", "numba", "safetensors", "tokenizers", "sentencepiece", "jinja2", "rich", "prompt_toolkit"]
    code = f"import sys, threading, edgellm{room}; print([m for m in {heavy} if m in sys.modules])"
    code += "; print(threading.active_count())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert shown.stdout.strip().split() == ["[]", "1"]

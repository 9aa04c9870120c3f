"""Digests of what a kernel's code is made from, read without importing it: its module, all it imports, the compiler."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

_PACKAGE = "edgellm.backends.cuda"
_FOLDER = Path(__file__).parent.parent
_COMPILER = f"{_PACKAGE}.ptx.compile"
# What these decide stands in the index itself, or in the header that a text gets when it is used.
_NO_MATTER = {f"{_PACKAGE}.{name}" for name in ("entry", "kernels.declare", "shipped")}


@cache
def digest(module: str) -> str:
    """sha256, in hexadecimal, of a module of `edgellm.backends.cuda` and of every one there that it imports."""
    total = hashlib.sha256()
    for name in sorted(modules_of(module)):
        total.update(name.encode() + b"\0" + _path(name).read_bytes() + b"\0")
    return total.hexdigest()


def modules_of(module: str) -> set[str]:
    """A module of `edgellm.backends.cuda`, every one there that it imports, and the compiler's."""
    found: set[str] = set()
    waiting = [module, _COMPILER]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imports(name)
    return found


@cache
def _imports(module: str) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(ast.parse(_path(module).read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    ours = (name for name in names if name.startswith(_PACKAGE + ".") and name not in _NO_MATTER)
    return tuple(sorted({name for name in ours if _path(name).exists()}))


def _path(module: str) -> Path:
    path = _FOLDER.joinpath(*module.removeprefix(_PACKAGE).split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

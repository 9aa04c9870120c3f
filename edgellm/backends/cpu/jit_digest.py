"""Under which name compiled kernels are kept: a digest of all that decides what the machine code is.

That is: every source file of `simd` and of this package (numba's own cache notices a change in the function's file
only, and answers with stale code after a change in a helper elsewhere), numba, llvmlite and Python, the processor as
numba compiles for it, and the settings that change code. What a single kernel depends on besides is in its key, see
`jit_key`. None of it imports numba: a start that finds its code at hand does without.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import llvmlite

from edgellm._version import __version__
from edgellm.backends.cpu import jit_key
from edgellm.simd.settings import DEFAULTS, processor, setting

_PACKAGES = ("edgellm.simd", "edgellm.backends.cpu")
DIGEST_LENGTH = 24


@functools.lru_cache(maxsize=1)
def digest() -> str:
    """The digest of this process, `DIGEST_LENGTH` hexadecimal digits. Taken when the first kernel is defined or looked
    for, so that a file edited afterwards cannot lend its digest to older code."""
    return current()


def current() -> str:
    """The digest as a process that starts now would take it."""
    hasher = hashlib.sha256()
    for part in [*_machine(), *_sources()]:
        hasher.update(part if isinstance(part, bytes) else part.encode())
        hasher.update(b"\0")
    return hasher.hexdigest()[:DIGEST_LENGTH]


def _machine() -> list[str]:
    parts = [_numba_version(), llvmlite.__version__, sys.implementation.cache_tag or sys.version, *processor()]
    parts += [f"{name}={setting(name)}" for name in DEFAULTS]
    parts.append(os.environ.get("EDGELLM_ISA", "").strip().lower())
    return parts


def _numba_version() -> str:
    """numba's version, from its file where numba is not imported yet, which takes 0.2 s."""
    spec = importlib.util.find_spec("numba")
    if "numba" not in sys.modules and spec is not None and spec.origin:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = Path(spec.origin).with_name("_version.py").read_text(encoding="utf-8")
            found = re.search(r'"version": "([^"]+)"', text)
            if found is not None:
                return found.group(1)
    return importlib.import_module("numba").__version__


def _sources() -> Iterator[str | bytes]:
    """Names and contents of the modules: files as a rule, else what the importer of a zip or a frozen program gives."""
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            files = sorted(Path(folder).rglob("*.py"))
            if files:
                for file in files:
                    yield from (package, file.relative_to(folder).as_posix(), file.read_bytes())
            else:
                yield from _from_importer(package, folder)


def _from_importer(package: str, folder: str) -> Iterator[str]:
    names = sorted(module.name for module in pkgutil.iter_modules([folder]))
    described = [text for text in (_code(f"{package}.{name}") for name in ["__init__", *names]) if text is not None]
    yield from described
    if len(described) <= len(names):  # some have no code to look at: the build itself must do
        yield from (__version__, _build())


def _code(name: str) -> str | None:
    """A module's code in words; None where its importer has none to give."""
    name = name.removesuffix(".__init__")
    try:
        spec = importlib.util.find_spec(name)
        code = spec.loader.get_code(name)
    except (ImportError, AttributeError, ValueError, OSError):
        return None
    return None if code is None else f"{name} {jit_key.describe_code(code)}"


def _build() -> str:
    """What tells one build of a frozen program from the next."""
    try:
        found = os.stat(sys.executable)
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"

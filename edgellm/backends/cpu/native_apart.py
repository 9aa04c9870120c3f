"""A first start compiles with two processes: half of the walker's kernels in a helper, which leaves them in the cache.

numba compiles one kernel at a time in a process, 34 s for all on two cores of a Zen 4 server, 19 with a helper. A
kernel's module may say how to divide them: the helper is told what is `APART` and the argument types; this process
compiles what can be done `MEANWHILE`, waits for the helper, and then finds its kernels in the cache. Where there is no
helper (one core, a place that cannot be written, a frozen application), or where it fails, this process does it all.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numba.core import types

from edgellm.backends.cpu import jit_cache, jit_progress
from edgellm.backends.cpu.collector import collecting_rarely
from edgellm.backends.cpu.cores import detect
from edgellm.backends.cpu.jit_calls import kernels_within

#: A helper that takes longer than this hangs.
_SECONDS = 300
_HELPER = "from edgellm.backends.cpu.native_apart import compile_parts; compile_parts()"


@contextlib.contextmanager
def parts_compiled(kernel: Any, kinds: Sequence[Any]) -> Iterator[None]:
    """Within the context the parts of `kernel`, which is called with arguments of numba types `kinds`, are compiled."""
    module = sys.modules[kernel.py_func.__module__]
    helper, elsewhere = None, []
    if hasattr(module, "APART") and _worth_it():
        known = _known(kernel, kinds, module.MEMBERS)
        helper = _begin(module.__name__, [(name, _kinds_of(getattr(module, name), known)) for name in module.APART])
        if helper is not None:
            elsewhere = [getattr(module, name) for name in module.APART]
    jit_progress.expect(len(kernels_within(kernel, elsewhere)))
    try:
        if helper is not None:
            for part in (getattr(module, name) for name in module.MEANWHILE):
                part.compile(_kinds_of(part, known))
            with contextlib.suppress(subprocess.TimeoutExpired):
                helper.wait(_SECONDS)
        yield
    finally:
        if helper is not None and helper.poll() is None:
            helper.kill()
            helper.wait()


def compile_parts() -> None:
    """What the helper does: compile the kernels that its standard input names, for the types that stand there."""
    module, parts = pickle.load(sys.stdin.buffer)
    with collecting_rarely():
        for name, kinds in parts:
            getattr(importlib.import_module(module), name).compile(kinds)


def _worth_it() -> bool:
    frozen = getattr(sys, "frozen", False) or not sys.executable
    return not frozen and len(detect().processors) > 1 and jit_cache.folders().writable() is not None


def _begin(module: str, parts: list[tuple[str, tuple[Any, ...]]]) -> subprocess.Popen[bytes] | None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        helper = subprocess.Popen(
            [sys.executable, "-c", _HELPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environ,
        )
        with helper.stdin:
            pickle.dump((module, parts), helper.stdin)
    except OSError:
        return None
    return helper


def _known(kernel: Any, kinds: Sequence[Any], members: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """numba types by the names that parameters have in a kernel and its parts."""
    known = dict(zip(inspect.signature(kernel.py_func).parameters, kinds, strict=False))
    for group, names in members.items():
        known |= dict(zip(names, known[group].types, strict=True))
    return known | {"op": known["table"].dtype, "out": known["act"]}


def _kinds_of(part: Any, known: Mapping[str, Any]) -> tuple[Any, ...]:
    """Types of a part's parameters; those that are not known are integers."""
    return tuple(known.get(name, types.int64) for name in inspect.signature(part.py_func).parameters)

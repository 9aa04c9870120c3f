"""Which kernels a kernel calls: what is compiled with it, for those who want to know how much is to be done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from edgellm.backends.cpu.jit_cache import KernelCache


def kernels_within(kernel: Any, without: Iterable[Any] = ()) -> list[Any]:
    """The kernel and those that it calls, and that those call; not `without` those, which are compiled elsewhere.

    Each stands here once, though it is compiled for each list of argument types; one that is inlined is part of others.
    """
    seen, found, asking = set(map(id, without)), [], [kernel]
    while asking:
        asked = asking.pop()
        if id(asked) in seen:
            continue
        seen.add(id(asked))
        if asked.targetoptions.get("inline") != "always":
            found.append(asked)
        asking += [value for value in _values(asked.py_func) if _is_kernel(value)]
    return found


def _values(function: Any) -> Iterator[Any]:
    """What the names in a function's code stand for."""
    for name in function.__code__.co_names:
        yield function.__globals__.get(name)
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not assigned yet
            yield cell.cell_contents


def _is_kernel(value: Any) -> bool:
    return isinstance(getattr(value, "_cache", None), KernelCache)

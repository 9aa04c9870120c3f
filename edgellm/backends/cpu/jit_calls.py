"""Which kernels a kernel calls: what is compiled with it, for those who want to know how much is to be done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgellm.backends.cpu.jit_cache import is_kernel
from edgellm.backends.cpu.jit_key import free_values, names_in


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
        function = asked.py_func
        values = [function.__globals__.get(name) for name in names_in(function.__code__)]
        values += [value for _, value in free_values(function)]
        asking += filter(is_kernel, values)
    return found

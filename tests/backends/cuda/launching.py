"""Kernels on the emulator: the shipped PTX, or what the compiler makes of sources that have changed since."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest

from edgellm.backends.cuda.kernels.sources import digest
from edgellm.backends.cuda.shipped import CODE, INDEX, shipped
from tools.ptx_emulator import Module

_DTYPES = {"u8": np.uint8, "i8": np.int8, "u16": np.uint16, "u32": np.uint32, "f32": np.float32, "u64": np.uint64}


@cache
def _ready(name: str, capability: int) -> tuple[Module, Any]:
    if (CODE / INDEX).exists() and name in shipped().entries and _up_to_date(name):
        return Module(shipped().module([name], capability)), shipped().entries[name]
    pytest.importorskip("numba_cuda", reason="nothing is shipped, and numba-cuda, which compiles, is missing")
    from edgellm.backends.cuda.kernels.declare import all_kernels
    from edgellm.backends.cuda.ptx.compile import ptx_of

    kernel = all_kernels()[name]
    return Module(ptx_of(kernel, capability)), kernel


def _up_to_date(name: str) -> bool:
    return shipped().sources[name] == digest(shipped().modules[name])


def launch(name: str, grid: tuple[int, ...], arguments: Mapping[str, Any], capability: int = 80) -> None:
    """Run a kernel with arguments by name; None stands for memory that it must not touch.

    Arrays are checked against the kernel's pointer types.
    """
    module, kernel = _ready(name, capability)
    listed = []
    for parameter in kernel.parameters:
        value = arguments[parameter.name]
        if parameter.type.endswith("*"):
            if value is None or value.size == 0:
                value = 0
            else:
                assert value.dtype == _DTYPES[parameter.type[:-1]], f"{parameter.name}: {value.dtype}"
        listed.append(value)
    assert set(arguments) == {parameter.name for parameter in kernel.parameters}
    module.launch(name, grid, (kernel.threads,), listed, shared=kernel.dynamic_shared)

"""How a kernel is declared: its name, parameters and launch shape, and what its generated code must keep to.

    @kernel("add", (("x", "f32*"), ("y", "f32*"), ("count", "u32")), threads=128)
    def add(x, y, count):
        i = u32(cuda.blockIdx.x * 128 + cuda.threadIdx.x)
        if i < count:
            y[i] = y[i] + x[i]

A family of kernels is declared by a function that makes one of them from literal constants and declares it under a name
that tells them (`gemv_w4g128_b1`). This module knows nothing of the compiler; the runtime reads `code/index.json`
instead.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.backends.cuda.entry import POINTEES, SCALARS, Entry, Parameter
from edgellm.errors import UsageError

_PACKAGE = "edgellm.backends.cuda.kernels"


@dataclass(frozen=True)
class Budget:
    """What the machine code of a kernel must keep to; the gates of the tests read it.

    Attributes:
        registers: the most registers a thread.
        shared: the most bytes of static shared memory a block.
        expects: patterns (regular expressions) of machine instructions that must be there, e.g. "LDG.E.*128".
        weight_bits: 4, 8 or 16 where the hot loop streams weights by `ldg128`; 0 where it does not.
        instructions_a_weight: the most instructions of a thread in that loop for each weight it reads.
    """

    registers: int = 128
    shared: int = 48 * 1024
    expects: tuple[str, ...] = ()
    weight_bits: int = 0
    instructions_a_weight: float = 0.0


@dataclass(frozen=True)
class Kernel(Entry):
    """A kernel as declared: the host's part, the Python function that is compiled, what its code must keep to, and the
    module that declares it, which imports all that it is made from."""

    function: Callable[..., None]
    budget: Budget
    module: str


REGISTRY: dict[str, Kernel] = {}


def kernel(
    name: str,
    parameters: Sequence[tuple[str, str]],
    *,
    threads: int = 128,
    min_blocks: int = 1,
    lowest: int = 75,
    highest: int | None = None,
    dynamic_shared: int = 0,
    registers: int = 128,
    shared: int = 48 * 1024,
    expects: Sequence[str] = (),
    weight_bits: int = 0,
    instructions_a_weight: float = 0.0,
    module: str | None = None,
) -> Callable[[Callable[..., None]], Kernel]:
    """Declare the decorated function a kernel; what it gives stands in `REGISTRY` under `name`. See `Kernel`, `Budget`.

    `module`: where the function was made from what another module brings, that one; else the function's own.

    Raises:
        UsageError: a name twice or no identifier, parameters that are not the function's, an unknown type, a block that
            no device takes.
    """

    def declare(function: Callable[..., None]) -> Kernel:
        budget = Budget(registers, shared, tuple(expects), weight_bits, instructions_a_weight)
        listed = tuple(Parameter(*parameter) for parameter in parameters)
        shape = (threads, min_blocks, lowest, highest, dynamic_shared)
        declared = Kernel(name, listed, *shape, function, budget, module or function.__module__)
        _check(declared)
        REGISTRY[name] = declared
        return declared

    return declare


def all_kernels() -> dict[str, Kernel]:
    """Every kernel of the package, by name in alphabetical order. Imports all of `kernels/`, so the compiler too."""
    package = importlib.import_module(_PACKAGE)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{_PACKAGE}.{module.name}")
    return dict(sorted(REGISTRY.items()))


def _check(declared: Kernel) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", declared.name):
        raise _bad(declared, "a kernel's name is no identifier", declared.name, "a-z, 0-9, _")
    if declared.name in REGISTRY:
        raise _bad(declared, "two kernels have one name", declared.name, "each name once")
    code = declared.function.__code__
    taken = code.co_varnames[: code.co_argcount]
    listed = tuple(parameter.name for parameter in declared.parameters)
    if taken != listed:
        raise _bad(declared, "the parameters are not the function's", listed, str(taken))
    for parameter in declared.parameters:
        known: dict[str, Any] = POINTEES if parameter.pointer else SCALARS
        if parameter.type.rstrip("*") not in known:
            raise _bad(declared, f"parameter {parameter.name} has an unknown type", parameter.type, ", ".join(known))
    if not 32 <= declared.threads <= 1024 or declared.threads % 32:
        raise _bad(declared, "the threads of a block", declared.threads, "whole warps, 32 to 1024")


def _bad(declared: Kernel, what: str, found: object, allowed: str) -> UsageError:
    return UsageError(what, key=declared.name, found=found, allowed=allowed)

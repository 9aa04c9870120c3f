"""Opcode -> the function that compiles an instruction to a closure over a frame's arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.frame import Active, Frame
from tools.ptx_emulator.syntax import Instruction
from tools.ptx_emulator.types import TYPES, PtxType

Run = Callable[[Active], None]
Compile = Callable[[Instruction, Frame], Run]
OPERATIONS: dict[str, Compile] = {}
# Opcodes whose threads of a warp must be together; the scheduler waits until they are.
COLLECTIVES: set[str] = set()


def operation(*roots: str, collective: bool = False) -> Callable[[Compile], Compile]:
    """Declares the decorated function as the compiler of the opcodes that begin with one of `roots`."""

    def declare(compile_one: Compile) -> Compile:
        for root in roots:
            OPERATIONS[root] = compile_one
            if collective:
                COLLECTIVES.add(root)
        return compile_one

    return declare


def type_of(ins: Instruction, at: int = -1) -> PtxType:
    """The type that the opcode names; `at` counts the types among its parts."""
    found = [TYPES[part] for part in ins.parts[1:] if part in TYPES]
    if not found:
        raise unknown(ins)
    return found[at]


def unknown(ins: Instruction) -> EmulatorError:
    return EmulatorError(f"the emulator does not know {'.'.join(ins.parts)}: `{ins.text}`", ins.line)


def known(ins: Instruction, *modifiers: str) -> None:
    """Raises when the opcode has a part that is neither a type nor one of `modifiers`."""
    for part in ins.parts[1:]:
        if part not in TYPES and part not in modifiers:
            raise unknown(ins)


def elementwise(function: Callable[..., np.ndarray], out: np.ndarray, *sources: np.ndarray) -> Run:
    """out = function(*sources) for the active threads."""

    def run(active: Active) -> None:
        if active.full:
            out[...] = function(*sources)
        else:
            lanes = active.lanes
            out[lanes] = function(*[source[lanes] for source in sources])

    return run


def universal(function: np.ufunc, out: np.ndarray, *sources: np.ndarray) -> Run:
    """The same for a ufunc whose result has `out`'s dtype: written in place, without a temporary."""

    def run(active: Active) -> None:
        if active.full:
            function(*sources, out=out)
        else:
            lanes = active.lanes
            out[lanes] = function(*[source[lanes] for source in sources])

    return run

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


# Below one active lane in so many, values are gathered; above, all lanes are computed and the active ones kept.
_SPARSE_FUNCTION = 4
_SPARSE_UFUNC = 16


def elementwise(function: Callable[..., np.ndarray], out: np.ndarray, *sources: np.ndarray) -> Run:
    """out = function(*sources) for the active threads. The function has no side effects and takes any bits."""
    total = out.size

    def run(active: Active) -> None:
        if active.full:
            out[...] = function(*sources)
        elif active.count * _SPARSE_FUNCTION < total:
            lanes = active.lanes
            out[lanes] = function(*[source[lanes] for source in sources])
        else:
            np.copyto(out, function(*sources), where=active.mask, casting="unsafe")

    return run


def universal(function: np.ufunc, out: np.ndarray, *sources: np.ndarray) -> Run:
    """The same for a ufunc whose result has `out`'s dtype: written in place, without a temporary."""
    total = out.size

    def run(active: Active) -> None:
        if active.full:
            function(*sources, out=out)
        elif active.count * _SPARSE_UFUNC < total:
            lanes = active.lanes
            out[lanes] = function(*[source[lanes] for source in sources])
        else:
            function(*sources, out=out, where=active.mask)

    return run

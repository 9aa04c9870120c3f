"""Registers that are never needed at the same time share one array, so that a frame fits the processor's cache.

Compilers write PTX with a new register for almost every value: a kernel of 1400 instructions has 2500. What is shared
is decided thread by thread, so divergence does not matter: lanes have their own elements of every array.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from tools.ptx_emulator.syntax import Address, Function, Instruction, Negated, Operand, Pair, Register, Vector

# Opcodes whose first operand is no destination.
_NO_RESULT = frozenset(
    ("st", "red", "bar", "barrier", "cp", "prefetch", "prefetchu", "bra", "brx", "stmatrix", "nanosleep", "discard")
)


@dataclass
class _Range:
    """Where a register is in use; `local` while all of it is seen to lie in one basic block, written first."""

    first: int
    last: int
    block: int
    local: bool


def slots(function: Function) -> dict[Register, int]:
    """Register -> number of the array it lives in, counted by width. A register that may be read unset has its own."""
    ranges, unset = _ranges(function)
    _widen(function, ranges)
    found: dict[Register, int] = {}
    for bits in {register.bits for register in ranges}:
        free: list[int] = []
        busy: list[tuple[int, int]] = []
        count = 0
        for register in sorted((r for r in ranges if r.bits == bits), key=lambda r: ranges[r].first):
            used = ranges[register]
            while busy and busy[0][0] < used.first:
                heapq.heappush(free, heapq.heappop(busy)[1])
            if free and register not in unset:
                slot = heapq.heappop(free)
            else:
                slot, count = count, count + 1
            found[register] = slot
            if register not in unset:
                heapq.heappush(busy, (used.last, slot))
    return found


def _ranges(function: Function) -> tuple[dict[Register, _Range], set[Register]]:
    """The stretches of code between a register's first and last mention, and those that are read before written."""
    starts = set(function.labels.values())
    ranges: dict[Register, _Range] = {}
    unset: set[Register] = set()
    block = 0
    for at, ins in enumerate(function.body):
        block += at in starts
        written, read = _mentioned(ins)
        for register in written + read:
            if register not in ranges:
                sound = register in written and register not in read and ins.guard is None
                ranges[register] = _Range(at, at, block, sound)
                if not sound:
                    unset.add(register)
            seen = ranges[register]
            seen.last = at
            seen.local &= seen.block == block
        block += ins.root in ("bra", "brx", "ret", "exit")
    return ranges, unset


def _widen(function: Function, ranges: dict[Register, _Range]) -> None:
    """What is not local to a block lives through every loop that it touches."""
    loops = []
    for at, ins in enumerate(function.body):
        targets = [function.labels[name] for name in _targets(ins, function) if name in function.labels]
        loops += [(target, at) for target in targets if target <= at]
    wide = [used for used in ranges.values() if not used.local]
    changed = True
    while changed:
        changed = False
        for first, last in loops:
            for used in wide:
                if used.first <= last and used.last >= first and (used.first > first or used.last < last):
                    used.first, used.last = min(used.first, first), max(used.last, last)
                    changed = True


def _targets(ins: Instruction, function: Function) -> tuple[str, ...]:
    names = tuple(getattr(operand, "name", "") for operand in ins.operands)
    if ins.root == "bra":
        return names
    return function.tables.get(names[-1], ()) if ins.root == "brx" else ()


def _mentioned(ins: Instruction) -> tuple[list[Register], list[Register]]:
    """(registers it may write, registers it reads)."""
    operands = list(ins.operands)
    written: list[Register] = []
    if operands and ins.root not in _NO_RESULT and not isinstance(operands[0], Address):
        written = _registers(operands.pop(0))
    read = [register for operand in operands for register in _registers(operand)]
    return written, read + ([ins.guard.register] if ins.guard else [])


def _registers(operand: Operand | None) -> list[Register]:
    if isinstance(operand, Register):
        return [operand]
    if isinstance(operand, Vector):
        return [register for item in operand.items for register in _registers(item)]
    if isinstance(operand, Pair):
        return _registers(operand.first) + _registers(operand.second)
    if isinstance(operand, Address):
        return _registers(operand.base if isinstance(operand.base, Register) else None)
    return [operand.register] if isinstance(operand, Negated) else []

"""atom and red: the threads take their turns in lane order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.ptx_emulator.access import Access, space_of
from tools.ptx_emulator.frame import Active, Frame
from tools.ptx_emulator.op_half import packed
from tools.ptx_emulator.registry import Run, operation, type_of, unknown
from tools.ptx_emulator.syntax import Instruction
from tools.ptx_emulator.types import TYPES

_ORDERING = frozenset(
    ["relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys", "cluster", "global", "shared", "shared::cta"]
)
_CHANGES: dict[str, np.ufunc] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _one(name: str, type_name: str) -> Callable[..., np.generic] | None:
    """(old, operand[, second]) -> new, of scalars."""
    if name == "exch":
        return lambda old, new: new
    if name == "cas":
        return lambda old, wanted, new: new if old == wanted else old
    if name == "inc":
        return lambda old, top: old.dtype.type(0) if old >= top else old + old.dtype.type(1)
    if name == "dec":
        return lambda old, top: top if old == 0 or old > top else old - old.dtype.type(1)
    if type_name in ("f16x2", "bf16x2", "f16", "bf16") and name == "add":
        function = packed(np.add, type_name)
        return lambda old, value: function(np.array([old]), np.array([value]))[0]
    return _CHANGES.get(name)


@operation("atom", "red")
def compile_atomic(ins: Instruction, frame: Frame) -> Run:
    of = type_of(ins)
    names = [part for part in ins.parts[1:] if part not in TYPES and part not in _ORDERING]
    if not names or set(names[1:]) - {"noftz"}:
        raise unknown(ins)
    name = names[0]
    change = _one(name, of.name)
    if change is None:
        raise unknown(ins)
    if of.kind in "bh" or of.name == "f16":
        of = TYPES[f"b{of.bits}"]
    returns = ins.root == "atom"
    operands = ins.operands if returns else (None, *ins.operands)
    out = frame.write(operands[0], of, ins) if operands[0] is not None else None
    access = Access(ins, frame, operands[1], space_of(ins), of.bytes, of.bytes, writes=True, atomic=True)
    values = [frame.read(operand, of, ins) for operand in operands[2:]]
    if len(values) != (2 if name == "cas" else 1):
        raise unknown(ins)

    def run(active: Active) -> None:
        for view, index, lanes in access.pieces(active):
            typed = view.view(of.dtype)
            given = [value[lanes] for value in values]
            if out is None and isinstance(change, np.ufunc):
                change.at(typed, index, given[0])
                continue
            before = np.empty(index.size, of.dtype)
            for k, place in enumerate(index.tolist()):
                before[k] = typed[place]
                typed[place] = change(before[k], *[value[k] for value in given])
            if out is not None:
                out[lanes] = before

    return run

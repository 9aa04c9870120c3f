"""ld, st, and what only hints at memory."""

from __future__ import annotations

import re

import numpy as np

from tools.ptx_emulator.access import SPACES, Access, space_of
from tools.ptx_emulator.frame import Active, Frame
from tools.ptx_emulator.registry import Run, operation, type_of, unknown
from tools.ptx_emulator.syntax import Immediate, Instruction, Symbol, Vector
from tools.ptx_emulator.types import TYPES

_HINTS = frozenset(
    [
        "weak",
        "relaxed",
        "acquire",
        "release",
        "volatile",
        "cta",
        "gpu",
        "sys",
        "cluster",
        "ca",
        "cg",
        "cs",
        "cv",
        "lu",
        "wb",
        "wt",
        "nc",
        "unified",
        "v2",
        "v4",
        "v8",
        "mmio",
    ]
)


def _known(ins: Instruction) -> None:
    for part in ins.parts[1:]:
        if part in TYPES or part in _HINTS or part.split("::")[0] in (*SPACES, "L1", "L2", "evict_last"):
            continue
        raise unknown(ins)


def _lanes_of_vector(ins: Instruction) -> int:
    return next((int(part[1:]) for part in ins.parts if re.fullmatch(r"v[248]", part)), 1)


def _items(operand: object) -> tuple:
    return operand.items if isinstance(operand, Vector) else (operand,)


@operation("ld", "ldu")
def compile_load(ins: Instruction, frame: Frame) -> Run:
    _known(ins)
    of, count = type_of(ins), _lanes_of_vector(ins)
    of = TYPES[f"{'s' if of.kind == 's' else 'b'}{of.bits}"]
    targets = _items(ins.operands[0])
    if len(targets) != count:
        raise unknown(ins)
    outs = [(k, frame.write(target, of, ins)) for k, target in enumerate(targets) if target is not None]
    address = ins.operands[1]
    space = space_of(ins)
    if space == "param" and isinstance(address.base, Symbol) and frame.symbols[address.base.name][0] == "param":
        return _load_parameter(ins, frame, outs, of)
    access = Access(ins, frame, address, space, of.bytes, of.bytes * count)
    signed = of.kind == "s"

    def run(active: Active) -> None:
        for view, index, lanes in access.pieces(active):
            typed = view.view(of.dtype) if signed else view
            for k, out in outs:
                out[lanes] = typed.take(index + k if k else index, mode="clip")

    return run


def _load_parameter(ins: Instruction, frame: Frame, outs: list[tuple[int, np.ndarray]], of) -> Run:
    address = ins.operands[1]
    start = frame.symbols[address.base.name][1] + address.offset

    def run(active: Active) -> None:
        for k, out in outs:
            at = start + k * of.bytes
            out[active.lanes] = frame.parameters[at : at + of.bytes].view(of.dtype)[0]

    return run


@operation("st")
def compile_store(ins: Instruction, frame: Frame) -> Run:
    _known(ins)
    of, count = type_of(ins), _lanes_of_vector(ins)
    bits = TYPES[f"b{of.bits}"]
    sources = _items(ins.operands[1])
    if len(sources) != count:
        raise unknown(ins)
    # A literal of a float type becomes its bits.
    values = [
        frame.read(source, of if isinstance(source, Immediate) else bits, ins).view(bits.dtype) for source in sources
    ]
    access = Access(ins, frame, ins.operands[0], space_of(ins), of.bytes, of.bytes * count, writes=True)

    def run(active: Active) -> None:
        for view, index, lanes in access.pieces(active):
            for k, value in enumerate(values):
                view[index + k if k else index] = value[lanes]

    return run


def _nothing(active: Active) -> None:
    return None


@operation("prefetch", "prefetchu", "membar", "fence", "nanosleep", "discard", "applypriority", "pmevent")
def compile_hint(ins: Instruction, frame: Frame) -> Run:
    """Hints and orderings: one thread after the other sees memory in order here anyway."""
    return _nothing


@operation("griddepcontrol")
def compile_dependence(ins: Instruction, frame: Frame) -> Run:
    """Launches run one after the other here; where one may begin earlier, `overlap.py` sees what it then does."""
    if ins.parts[1:] not in (("wait",), ("launch_dependents",)):
        raise unknown(ins)
    waits = ins.parts[1] == "wait"

    def run(active: Active) -> None:
        if frame.overlap is None:
            return
        if waits:
            frame.overlap.wait(active)
        else:
            frame.overlap.let_next(ins, frame, active)

    return run


@operation("createpolicy")
def compile_policy(ins: Instruction, frame: Frame) -> Run:
    out = frame.write(ins.operands[0], TYPES["b64"], ins)

    def run(active: Active) -> None:
        out[active.lanes] = 0

    return run

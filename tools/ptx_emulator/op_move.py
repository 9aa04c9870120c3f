"""mov, selp, slct, setp, set, cvta and address arithmetic of windows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.ptx_emulator.frame import Frame
from tools.ptx_emulator.memory import LOCAL_WINDOW, SHARED_WINDOW, WINDOW_BYTES
from tools.ptx_emulator.registry import Run, elementwise, known, operation, type_of, unknown
from tools.ptx_emulator.syntax import Immediate, Instruction, Pair, Vector
from tools.ptx_emulator.types import TYPES, UNSIGNED

WINDOWS = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}


def _identity(values: np.ndarray) -> np.ndarray:
    return values


@operation("mov")
def compile_move(ins: Instruction, frame: Frame) -> Run:
    of = type_of(ins)
    known(ins)
    target, source = ins.operands
    if isinstance(source, Vector):
        return _pack(ins, frame, source)
    if isinstance(target, Vector):
        return _unpack(ins, frame, target)
    if of.kind == "p":
        values, negate = frame.predicate(source, ins)
        out = frame.predicate(target, ins)[0]
        return elementwise(np.logical_not if negate else _identity, out, values)
    bits = TYPES[f"b{of.bits}"]
    # A literal of a float type becomes its bits.
    operand = frame.read(source, of if isinstance(source, Immediate) else bits, ins)
    return elementwise(_identity, frame.write(target, bits, ins), operand.view(bits.dtype))


def _pack(ins: Instruction, frame: Frame, source: Vector) -> Run:
    of = type_of(ins)
    part = TYPES[f"b{of.bits // len(source.items)}"]
    out = frame.write(ins.operands[0], TYPES[f"b{of.bits}"], ins)
    sources = [frame.read(item, part, ins) for item in source.items]
    wide = UNSIGNED[of.bits]

    def pack(*values: np.ndarray) -> np.ndarray:
        result = values[0].astype(wide)
        for k, value in enumerate(values[1:], 1):
            result |= value.astype(wide) << wide.type(k * part.bits)
        return result

    return elementwise(pack, out, *sources)


def _unpack(ins: Instruction, frame: Frame, target: Vector) -> Run:
    of = type_of(ins)
    part = TYPES[f"b{of.bits // len(target.items)}"]
    source = frame.read(ins.operands[1], TYPES[f"b{of.bits}"], ins)
    outs = [(k, frame.write(item, part, ins)) for k, item in enumerate(target.items) if item is not None]
    wide = UNSIGNED[of.bits].type

    def run(active) -> None:
        lanes = active.lanes
        values = source[lanes].copy()
        for k, out in outs:
            out[lanes] = (values >> wide(k * part.bits)).astype(part.dtype)

    return run


@operation("selp")
def compile_select(ins: Instruction, frame: Frame) -> Run:
    of = type_of(ins)
    known(ins)
    out = frame.write(ins.operands[0], of, ins)
    first, second = (frame.read(operand, of, ins) for operand in ins.operands[1:3])
    chosen, negate = frame.predicate(ins.operands[3], ins)
    if negate:
        first, second = second, first
    return elementwise(lambda a, b, p: np.where(p, a, b), out, first, second, chosen)


@operation("slct")
def compile_select_sign(ins: Instruction, frame: Frame) -> Run:
    """d = c >= 0 ? a : b"""
    of, sign = type_of(ins, 0), type_of(ins, 1)
    known(ins, "ftz")
    out = frame.write(ins.operands[0], of, ins)
    first, second = (frame.read(operand, of, ins) for operand in ins.operands[1:3])
    return elementwise(
        lambda a, b, c: np.where(c >= 0, a, b), out, first, second, frame.read(ins.operands[3], sign, ins)
    )


_ORDERED: dict[str, Callable[..., np.ndarray]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
_BOOLEAN = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(name: str, floating: bool) -> Callable[..., np.ndarray] | None:
    """The comparison that a setp names; of floats the u-variants are true when either is NaN."""
    if not floating:
        return _ORDERED.get(name)
    if name == "ne":
        return lambda a, b: (a < b) | (a > b)
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "neu":
        return np.not_equal
    if len(name) == 3 and name.endswith("u") and name[:2] in _ORDERED:
        ordered = _ORDERED[name[:2]]
        return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
    return _ORDERED.get(name) if name not in ("lo", "ls", "hi", "hs") else None


def _compared(ins: Instruction, frame: Frame) -> tuple[Callable[..., np.ndarray], list[np.ndarray]]:
    """(function of the sources, sources) of setp and set: the comparison, combined with a predicate if one is given."""
    of = type_of(ins)
    if of.kind == "h":
        raise unknown(ins)
    compare = comparison(ins.parts[1], of.kind == "f")
    if compare is None:
        raise unknown(ins)
    sources = [frame.read(operand, of, ins) for operand in ins.operands[1:3]]
    combine = next((_BOOLEAN[part] for part in ins.parts[2:] if part in _BOOLEAN), None)
    if combine is None:
        return compare, sources
    third, negate = frame.predicate(ins.operands[3], ins)
    return lambda a, b, c: combine(compare(a, b), c ^ negate), [*sources, third]


@operation("setp")
def compile_set_predicate(ins: Instruction, frame: Frame) -> Run:
    known(ins, ins.parts[1], "and", "or", "xor", "ftz")
    function, sources = _compared(ins, frame)
    target = ins.operands[0]
    if not isinstance(target, Pair):
        return elementwise(function, frame.predicate(target, ins)[0], *sources)
    first = frame.write(target.first, TYPES["pred"], ins)
    second = frame.write(target.second, TYPES["pred"], ins)
    if len(sources) == 3:
        raise unknown(ins)

    def run(active) -> None:
        values = function(*[source[active.lanes] for source in sources])
        first[active.lanes] = values
        second[active.lanes] = ~values

    return run


@operation("set")
def compile_set(ins: Instruction, frame: Frame) -> Run:
    """The comparison as all ones or, for a float destination, as 1.0."""
    to = type_of(ins, 0)
    known(ins, ins.parts[1], "and", "or", "xor", "ftz")
    function, sources = _compared(ins, frame)
    one = to.dtype.type(1) if to.kind == "f" else np.invert(to.dtype.type(0))
    out = frame.write(ins.operands[0], to, ins)
    return elementwise(lambda *values: np.where(function(*values), one, to.dtype.type(0)), out, *sources)


@operation("cvta")
def compile_window(ins: Instruction, frame: Frame) -> Run:
    """Between a state space and the generic space; global addresses are the same in both."""
    of = type_of(ins)
    known(ins, "to", "global", "shared", "shared::cta", "local", "const", "param")
    window = next((WINDOWS[part.split("::")[0]] for part in ins.parts if part.split("::")[0] in WINDOWS), 0)
    shift = of.dtype.type(window)
    out = frame.write(ins.operands[0], of, ins)
    source = frame.read(ins.operands[1], of, ins)
    if "to" in ins.parts:
        return elementwise(lambda a: a - shift, out, source)
    return elementwise(lambda a: a + shift, out, source)


@operation("isspacep")
def compile_is_space(ins: Instruction, frame: Frame) -> Run:
    space = ins.parts[1].split("::")[0]
    source = frame.read(ins.operands[1], TYPES["u64"], ins)
    out, _ = frame.predicate(ins.operands[0], ins)
    low = WINDOWS.get(space, 0)
    high = low + WINDOW_BYTES if low else SHARED_WINDOW
    return elementwise(lambda a: (a >= np.uint64(low)) & (a < np.uint64(high)), out, source)

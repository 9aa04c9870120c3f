"""Integer arithmetic and logic."""

from __future__ import annotations

import numpy as np

from tools.ptx_emulator.frame import Frame
from tools.ptx_emulator.op_float import compile_float
from tools.ptx_emulator.registry import Run, elementwise, known, operation, type_of, universal, unknown
from tools.ptx_emulator.syntax import Instruction
from tools.ptx_emulator.types import SIGNED, TYPES, UNSIGNED, PtxType

_LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
_PLAIN = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}


def _sources(ins: Instruction, frame: Frame, of: PtxType, count: int) -> list[np.ndarray]:
    if len(ins.operands) != count + 1:
        raise unknown(ins)
    return [frame.read(operand, of, ins) for operand in ins.operands[1:]]


@operation("and", "or", "xor", "not", "cnot")
def compile_logic(ins: Instruction, frame: Frame) -> Run:
    of = type_of(ins)
    known(ins)
    out = frame.write(ins.operands[0], of, ins)
    if ins.root == "cnot":
        return elementwise(lambda a: a == 0, out, *_sources(ins, frame, of, 1))
    if ins.root == "not":
        return universal(np.logical_not if of.kind == "p" else np.invert, out, *_sources(ins, frame, of, 1))
    if of.kind != "p":
        return universal(_LOGIC[ins.root], out, *_sources(ins, frame, of, 2))
    (first, swap), (second, other) = (frame.predicate(operand, ins) for operand in ins.operands[1:])
    if not swap and not other:
        return universal(_LOGIC[ins.root], out, first, second)
    return elementwise(lambda a, b: _LOGIC[ins.root](a ^ swap, b ^ other), out, first, second)


@operation("add", "sub", "min", "max")
def compile_plain(ins: Instruction, frame: Frame) -> Run:
    of = type_of(ins)
    if of.kind in "fh":
        return compile_float(ins, frame)
    if ins.parts[1] == "cc":
        return _with_carry(ins, frame, takes=False, gives=True)
    known(ins, "sat")
    out, sources = frame.write(ins.operands[0], of, ins), _sources(ins, frame, of, 2)
    if "sat" in ins.parts:
        limits = np.iinfo(np.int32)
        function = _PLAIN[ins.root]
        return elementwise(lambda a, b: np.clip(function(a.astype(np.int64), b), limits.min, limits.max), out, *sources)
    return universal(_PLAIN[ins.root], out, *sources)


@operation("addc", "subc")
def compile_carried(ins: Instruction, frame: Frame) -> Run:
    return _with_carry(ins, frame, takes=True, gives="cc" in ins.parts)


def _with_carry(ins: Instruction, frame: Frame, takes: bool, gives: bool) -> Run:
    """add.cc, addc, sub.cc, subc: the carry (or borrow) is a bit a thread."""
    of = UNSIGNED[type_of(ins).bits]
    typed = TYPES[f"u{8 * of.itemsize}"]
    out = frame.write(ins.operands[0], typed, ins)
    first, second = _sources(ins, frame, typed, 2)
    carry, adds = frame.carry, ins.root.startswith("add")

    def run(active) -> None:
        lanes = active.lanes
        a, b = first[lanes].copy(), second[lanes]
        c = carry[lanes].astype(of) if takes else of.type(0)
        if adds:
            part = a + b
            result = part + c
            over = (part < a) | (result < part)
        else:
            part = a - b
            result = part - c
            over = (a < b) | (part < c)
        out[lanes] = result
        if gives:
            carry[lanes] = over

    return run


@operation("mul", "mad", "mul24", "mad24")
def compile_product(ins: Instruction, frame: Frame) -> Run:
    of = type_of(ins)
    if of.kind in "fh":
        return compile_float(ins, frame)
    known(ins, "lo", "hi", "wide")
    if ins.root.endswith("24"):
        raise unknown(ins)
    adds = ins.root == "mad"
    if "wide" in ins.parts:
        wide = TYPES[f"{of.kind}{2 * of.bits}"]
        out = frame.write(ins.operands[0], wide, ins)
        a, b = (frame.read(operand, of, ins) for operand in ins.operands[1:3])
        if not adds:
            return elementwise(lambda x, y: np.multiply(x, y, dtype=wide.dtype), out, a, b)
        c = frame.read(ins.operands[3], wide, ins)
        return elementwise(lambda x, y, z: np.multiply(x, y, dtype=wide.dtype) + z, out, a, b, c)
    out = frame.write(ins.operands[0], of, ins)
    sources = _sources(ins, frame, of, 3 if adds else 2)
    if "hi" in ins.parts:
        if adds:
            return elementwise(lambda x, y, z: high_product(x, y) + z, out, *sources)
        return elementwise(high_product, out, *sources)
    if adds:
        return elementwise(lambda x, y, z: x * y + z, out, *sources)
    return universal(np.multiply, out, *sources)


def high_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The upper half of the product of two integers of one dtype."""
    bits = 8 * a.dtype.itemsize
    signed = a.dtype.kind == "i"
    if bits < 64:
        wide = (SIGNED if signed else UNSIGNED)[2 * bits]
        return (np.multiply(a, b, dtype=wide) >> wide.type(bits)).astype(a.dtype)
    x, y = np.ascontiguousarray(a).view(np.uint64), np.ascontiguousarray(b).view(np.uint64)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    x0, x1, y0, y1 = x & low, x >> shift, y & low, y >> shift
    middle = x1 * y0 + (x0 * y0 >> shift)
    other = x0 * y1 + (middle & low)
    high = x1 * y1 + (middle >> shift) + (other >> shift)
    if signed:
        high = high - np.where(a < 0, y, 0).astype(np.uint64) - np.where(b < 0, x, 0).astype(np.uint64)
    return high.view(a.dtype)


@operation("div", "rem")
def compile_quotient(ins: Instruction, frame: Frame) -> Run:
    of = type_of(ins)
    if of.kind in "fh":
        return compile_float(ins, frame)
    known(ins)
    out, sources = frame.write(ins.operands[0], of, ins), _sources(ins, frame, of, 2)
    return elementwise(quotient if ins.root == "div" else remainder, out, *sources)


def quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b towards zero; by zero it is all ones, as devices give (PTX leaves it open)."""
    floor = a // b
    if a.dtype.kind == "i":
        floor = floor + ((a % b != 0) & ((a < 0) != (b < 0)))
    return np.where(b == 0, np.invert(a.dtype.type(0)), floor).astype(a.dtype)


def remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b * (a / b); by zero it is a."""
    return np.where(b == 0, a, a - b * quotient(a, b)).astype(a.dtype)


@operation("neg", "abs")
def compile_sign(ins: Instruction, frame: Frame) -> Run:
    of = type_of(ins)
    if of.kind in "fh":
        return compile_float(ins, frame)
    known(ins)
    out = frame.write(ins.operands[0], of, ins)
    return universal(np.negative if ins.root == "neg" else np.abs, out, *_sources(ins, frame, of, 1))


@operation("shl", "shr")
def compile_shift(ins: Instruction, frame: Frame) -> Run:
    """Shift amounts are 32 bits and clamp at the width."""
    of = type_of(ins)
    known(ins)
    out = frame.write(ins.operands[0], of, ins)
    value = frame.read(ins.operands[1], of, ins)
    amount = frame.read(ins.operands[2], TYPES["u32"], ins)
    function = np.left_shift if ins.root == "shl" else np.right_shift
    if amount.strides == (0,) and amount[0] < of.bits:
        fixed = np.broadcast_to(of.dtype.type(amount[0]), amount.shape)
        return universal(function, out, value, fixed)
    # NumPy's shifts by the width or more give what PTX's clamped ones do.
    return elementwise(lambda values, by: function(values, by.astype(of.dtype)), out, value, amount)


@operation("sad")
def compile_sad(ins: Instruction, frame: Frame) -> Run:
    of = type_of(ins)
    known(ins)
    out = frame.write(ins.operands[0], of, ins)
    return elementwise(lambda a, b, c: np.where(a < b, b - a, a - b) + c, out, *_sources(ins, frame, of, 3))

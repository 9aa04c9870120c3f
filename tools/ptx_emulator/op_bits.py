"""Bit fields, permutes, population counts and dot products of bytes."""

from __future__ import annotations

import numpy as np

from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.frame import Frame
from tools.ptx_emulator.registry import Run, elementwise, known, operation, type_of, unknown
from tools.ptx_emulator.syntax import Immediate, Instruction
from tools.ptx_emulator.types import TYPES

_U32 = TYPES["u32"]


def _plain(ins: Instruction, frame: Frame, of, count: int) -> list[np.ndarray]:
    if len(ins.operands) != count + 1:
        raise unknown(ins)
    return [frame.read(operand, of, ins) for operand in ins.operands[1:]]


@operation("lop3")
def compile_lop3(ins: Instruction, frame: Frame) -> Run:
    known(ins)
    table = ins.operands[4]
    if len(ins.operands) != 5 or not isinstance(table, Immediate):
        raise unknown(ins)
    sources = [frame.read(operand, _U32, ins) for operand in ins.operands[1:4]]
    out = frame.write(ins.operands[0], _U32, ins)
    simple = {
        0xEA: lambda a, b, c: a & b | c,
        0xC0: lambda a, b, c: a & b,
        0xFC: lambda a, b, c: a | b,
        0x3C: lambda a, b, c: a ^ b,
        0x96: lambda a, b, c: a ^ b ^ c,
        0xFE: lambda a, b, c: a | b | c,
        0x80: lambda a, b, c: a & b & c,
        0xF8: lambda a, b, c: a | b & c,
        0x6A: lambda a, b, c: a & b ^ c,
        0xCA: lambda a, b, c: a & b | ~a & c,
        0xE8: lambda a, b, c: a & b | a & c | b & c,
    }
    return elementwise(simple.get(table.value) or truth_table(table.value), out, *sources)


def truth_table(table: int):
    """The bitwise function of three words whose truth table (index a*4 + b*2 + c) is `table`."""

    def function(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        result = np.zeros_like(a)
        for k in range(8):
            if table >> k & 1:
                result |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
        return result

    return function


@operation("prmt")
def compile_permute(ins: Instruction, frame: Frame) -> Run:
    mode = next((part for part in ins.parts[2:] if part not in TYPES), "")
    if mode not in ("", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"):
        raise unknown(ins)
    out = frame.write(ins.operands[0], _U32, ins)
    fixed = ins.operands[3].value if isinstance(ins.operands[3], Immediate) and not mode else None
    sources = _plain(ins, frame, _U32, 3)
    return elementwise(lambda a, b, c: permute(a, b, c, mode, fixed), out, *sources)


_MODES = {
    "f4e": [(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 6)],
    "b4e": [(0, 7, 6, 5), (1, 0, 7, 6), (2, 1, 0, 7), (3, 2, 1, 0)],
    "rc8": [(0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)],
    "ecl": [(0, 1, 2, 3), (1, 1, 2, 3), (2, 2, 2, 3), (3, 3, 3, 3)],
    "ecr": [(0, 0, 0, 0), (0, 1, 1, 1), (0, 1, 2, 2), (0, 1, 2, 3)],
    "rc16": [(0, 1, 0, 1), (2, 3, 2, 3), (0, 1, 0, 1), (2, 3, 2, 3)],
}


def permute(a: np.ndarray, b: np.ndarray, c: np.ndarray, mode: str = "", fixed: int | None = None) -> np.ndarray:
    """prmt.b32: bytes of b:a chosen by the nibbles of c (bit 3 repeats the sign), or by one of the modes."""
    pair = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros(a.shape, np.uint32)
    for k in range(4):
        if mode:
            places = np.array([row[k] for row in _MODES[mode]], np.uint64)[c & np.uint32(3)]
            sign = None
        elif fixed is not None:
            places = np.uint64(fixed >> 4 * k & 7)
            sign = bool(fixed >> 4 * k & 8)
        else:
            nibble = c >> np.uint32(4 * k)
            places, sign = (nibble & np.uint32(7)).astype(np.uint64), nibble & np.uint32(8) != 0
        byte = (pair >> places * np.uint64(8) & np.uint64(0xFF)).astype(np.uint32)
        if sign is not None and np.any(sign):
            byte = np.where(sign, np.where(byte & np.uint32(0x80), np.uint32(0xFF), np.uint32(0)), byte)
        result |= byte << np.uint32(8 * k)
    return result


@operation("bfe")
def compile_extract(ins: Instruction, frame: Frame) -> Run:
    of = type_of(ins)
    known(ins)
    value = frame.read(ins.operands[1], of, ins)
    start, length = (frame.read(operand, _U32, ins) for operand in ins.operands[2:4])
    return elementwise(extract_field, frame.write(ins.operands[0], of, ins), value, start, length)


def extract_field(value: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """bfe: `length` bits from `start`, bits past the end repeat the sign (signed) or are zero."""
    bits, signed = 8 * value.itemsize, value.dtype.kind == "i"
    start = (start & np.uint32(0xFF)).astype(np.int64)
    length = (length & np.uint32(0xFF)).astype(np.int64)
    shifted = value >> np.minimum(start, bits - 1).astype(value.dtype)
    if not signed:
        shifted = np.where(start < bits, shifted, value.dtype.type(0))
    unsigned = np.ascontiguousarray(shifted).view(f"u{value.itemsize}")
    keep = _ones(np.minimum(length, bits), bits).astype(unsigned.dtype)
    field = unsigned & keep
    if signed:
        top = value >> np.minimum(start + np.maximum(length, 1) - 1, bits - 1).astype(value.dtype)
        field = np.where((top & 1).astype(bool) & (length > 0), field | ~keep, field)
    return np.where(length == 0, 0, field).astype(unsigned.dtype).view(value.dtype)


def _ones(count: np.ndarray, bits: int) -> np.ndarray:
    """uint64 with the lowest `count` (at most `bits`) bits set."""
    count = count.astype(np.uint64)
    full = np.uint64(0xFFFFFFFFFFFFFFFF)
    some = (np.uint64(1) << np.minimum(count, np.uint64(63))) - np.uint64(1)
    return np.where(count >= np.uint64(64), full, some)


@operation("bfi")
def compile_insert(ins: Instruction, frame: Frame) -> Run:
    of = type_of(ins)
    known(ins)
    a, b = (frame.read(operand, of, ins) for operand in ins.operands[1:3])
    start, length = (frame.read(operand, _U32, ins) for operand in ins.operands[3:5])
    bits = of.bits

    def insert(a: np.ndarray, b: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        start, length = start & np.uint32(0xFF), (length & np.uint32(0xFF)).astype(np.int64)
        by = np.minimum(start, 63).astype(np.uint64)
        inside = np.where(start < bits, _ones(np.minimum(length, 64), 64) << by, np.uint64(0))
        return b.astype(np.uint64) & ~inside | a.astype(np.uint64) << by & inside

    return elementwise(insert, frame.write(ins.operands[0], of, ins), a, b, start, length)


def _bits_of(values: np.ndarray) -> np.ndarray:
    """[n, bits] of 0 and 1, the lowest first."""
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), values.itemsize)
    return np.unpackbits(raw, axis=1, bitorder="little")


def _highest(values: np.ndarray) -> np.ndarray:
    """The place of the highest set bit, -1 where none is."""
    bits = _bits_of(values)
    return np.where(bits.any(1), bits.shape[1] - 1 - bits[:, ::-1].argmax(1), -1)


@operation("popc", "clz", "brev", "bfind", "fns", "bmsk")
def compile_count(ins: Instruction, frame: Frame) -> Run:
    of = type_of(ins)
    known(ins, "shiftamt", "clamp", "wrap")
    if ins.root in ("fns", "bmsk"):
        raise unknown(ins)
    out = frame.write(ins.operands[0], of if ins.root == "brev" else _U32, ins)
    source = frame.read(ins.operands[1], of, ins)
    if ins.root == "popc":
        return elementwise(lambda a: _bits_of(a).sum(1), out, source)
    if ins.root == "clz":
        return elementwise(lambda a: of.bits - 1 - _highest(a), out, source)
    if ins.root == "brev":
        return elementwise(
            lambda a: np.packbits(_bits_of(a)[:, ::-1], axis=1, bitorder="little").view(of.dtype)[:, 0], out, source
        )

    def find(a: np.ndarray) -> np.ndarray:
        place = _highest(np.where(a < 0, ~a, a) if of.kind == "s" else a)
        if "shiftamt" in ins.parts:
            place = np.where(place < 0, -1, of.bits - 1 - place)
        return place.astype(np.int32).view(np.uint32)

    return elementwise(find, out, source)


@operation("shf")
def compile_funnel(ins: Instruction, frame: Frame) -> Run:
    if ins.parts[1] not in ("l", "r") or ins.parts[2] not in ("wrap", "clamp"):
        raise unknown(ins)
    left, clamp = ins.parts[1] == "l", ins.parts[2] == "clamp"
    sources = _plain(ins, frame, _U32, 3)

    def funnel(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        by = (np.minimum(c, 32) if clamp else c & np.uint32(31)).astype(np.uint64)
        pair = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
        return (pair << by >> np.uint64(32) if left else pair >> by).astype(np.uint32)

    return elementwise(funnel, frame.write(ins.operands[0], _U32, ins), *sources)


@operation("dp4a", "dp2a")
def compile_dot(ins: Instruction, frame: Frame) -> Run:
    if ins.root == "dp2a":
        raise unknown(ins)
    known(ins)
    if len(ins.parts) != 3:
        raise EmulatorError(f"dp4a needs two types: `{ins.text}`", ins.line)
    first, second = (np.int8 if part[0] == "s" else np.uint8 for part in ins.parts[1:])
    of = TYPES["s32" if "s32" in ins.parts else "u32"]
    a, b = (frame.read(operand, _U32, ins) for operand in ins.operands[1:3])
    c = frame.read(ins.operands[3], of, ins)

    def dot(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        # Sums of four products of bytes are exact in float32 (below 2**18), whose einsum is the fastest.
        left = np.ascontiguousarray(a).view(first).reshape(-1, 4).astype(np.float32)
        right = np.ascontiguousarray(b).view(second).reshape(-1, 4).astype(np.float32)
        return np.einsum("ij,ij->i", left, right).astype(np.int32).view(of.dtype) + c

    return elementwise(dot, frame.write(ins.operands[0], of, ins), a, b, c)

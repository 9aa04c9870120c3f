"""mma.sync, ldmatrix and stmatrix: a warp's fragments as matrices."""

from __future__ import annotations

import numpy as np

from tools.ptx_emulator.access import Access
from tools.ptx_emulator.frame import WARP, Active, Frame
from tools.ptx_emulator.registry import Run, operation, unknown
from tools.ptx_emulator.rounding import from_bfloat16
from tools.ptx_emulator.syntax import Instruction, Vector
from tools.ptx_emulator.types import TYPES, PtxType

_B32 = TYPES["b32"]
Fragment = list[np.ndarray]


def _values(words: np.ndarray, name: str) -> np.ndarray:
    """The float64 values that words hold, two halves or four bytes of each along the last axis."""
    if name in ("s8", "u8"):
        return words.view(np.int8 if name == "s8" else np.uint8).astype(np.float64)
    if name == "f16":
        return words.view(np.float16).astype(np.float64)
    return from_bfloat16(words.view(np.uint16)).astype(np.float64)


def left_matrix(words: Fragment, name: str, rows: int, depth: int) -> np.ndarray:
    """A: [warps, rows, depth] float64. Registers go rows g (and g + 8 of 16 rows), then on along the depth.

    Words are put in their places before they are taken apart: lane 4 * g + t holds row g's word t of eight bytes.
    """
    halves = rows // 8
    placed = np.empty((words[0].size // WARP, halves, 8, len(words) // halves, 4), np.uint32)
    for k, word in enumerate(words):
        placed[:, k % halves, :, k // halves] = word.reshape(-1, 8, 4)
    return _values(placed.reshape(-1), name).reshape(-1, rows, depth)


def right_matrix(words: Fragment, name: str, depth: int) -> np.ndarray:
    """B transposed: [warps, 8, depth] float64."""
    placed = np.empty((words[0].size // WARP, 8, len(words), 4), np.uint32)
    for k, word in enumerate(words):
        placed[:, :, k] = word.reshape(-1, 8, 4)
    return _values(placed.reshape(-1), name).reshape(-1, 8, depth)


@operation("mma", collective=True)
def compile_mma(ins: Instruction, frame: Frame) -> Run:
    """D = A B + C of m16n8k8, k16 (f16, bf16), of m16n8k16, k32 and m8n8k16 (s8, u8).

    Sums are made in float64 and rounded once; a device sums in float32 with some more bits, in an order of its own.
    """
    rows, depth, of, left_name, right_name = _checked(ins)
    vectors = [operand.items if isinstance(operand, Vector) else (operand,) for operand in ins.operands]
    per_word = 4 if of.kind == "s" else 2
    words = [rows * 8, rows * depth // per_word, 8 * depth // per_word, rows * 8]
    if [len(vector) * WARP for vector in vectors] != words:
        raise unknown(ins)
    outs = [frame.write(item, of, ins) for item in vectors[0]]
    left, right = ([frame.read(item, _B32, ins) for item in vector] for vector in vectors[1:3])
    adds = [frame.read(item, of, ins) for item in vectors[3]]

    def run(active: Active) -> None:
        lanes = active.lanes
        a = left_matrix([word[lanes] for word in left], left_name, rows, depth)
        b = right_matrix([word[lanes] for word in right], right_name, depth)
        product = np.matmul(a, b.transpose(0, 2, 1)).reshape(-1, rows // 8, 8, 4, 2)
        sums = [product[:, k // 2, :, :, k % 2].reshape(-1) for k in range(len(outs))]
        # A destination may be an operand too: everything is read before anything is written.
        if of.kind == "s":
            found = [
                values.astype(np.int64).astype(np.int32) + add[lanes] for values, add in zip(sums, adds, strict=True)
            ]
        else:
            found = [values + add[lanes] for values, add in zip(sums, adds, strict=True)]
        for out, values in zip(outs, found, strict=True):
            out[lanes] = values

    return run


# (rows, depth) -> the types that may be multiplied.
_SHAPES = {
    "m16n8k8": (16, 8, ("f16", "bf16")),
    "m16n8k16": (16, 16, ("f16", "bf16", "s8", "u8")),
    "m16n8k32": (16, 32, ("s8", "u8")),
    "m8n8k16": (8, 16, ("s8", "u8")),
}


def _checked(ins: Instruction) -> tuple[int, int, PtxType, str, str]:
    """(rows, depth, type of the sums, type of A, type of B); raises for what is not known."""
    shape = next((part for part in ins.parts if part in _SHAPES), None)
    names = [part for part in ins.parts if part in TYPES]
    others = {part for part in ins.parts[1:] if part not in TYPES and part not in _SHAPES}
    if shape is None or len(names) != 4 or others != {"sync", "aligned", "row", "col"}:
        raise unknown(ins)
    rows, depth, allowed = _SHAPES[shape]
    out_name, left_name, right_name, add_name = names
    integer = left_name in ("s8", "u8")
    if left_name not in allowed or right_name not in allowed or (not integer and right_name != left_name):
        raise unknown(ins)
    if out_name != add_name or out_name != ("s32" if integer else "f32"):
        raise unknown(ins)
    return rows, depth, TYPES[out_name], left_name, right_name


@operation("ldmatrix", collective=True)
def compile_ldmatrix(ins: Instruction, frame: Frame) -> Run:
    """8x8 matrices of 16-bit items: lane i's address is row i % 8 of matrix i / 8; lane 4g+t gets row g's pair t."""
    count = _matrices(ins)
    vector = ins.operands[0]
    outs = [frame.write(item, _B32, ins) for item in (vector.items if isinstance(vector, Vector) else (vector,))]
    if len(outs) != count:
        raise unknown(ins)
    access = Access(ins, frame, ins.operands[1], "shared", 2, 16)
    transposed = "trans" in ins.parts

    def run(active: Active) -> None:
        rows = active.indices().reshape(-1, WARP)[:, : 8 * count].reshape(-1)
        mask = np.zeros(frame.threads, bool)
        mask[rows] = True
        (view, index, _) = access.pieces(Active(mask))[0]
        items = view.take(index[:, None] + np.arange(8), mode="clip").reshape(-1, count, 8, 8)
        if transposed:
            items = items.transpose(0, 1, 3, 2)
        for k, out in enumerate(outs):
            out[active.lanes] = np.ascontiguousarray(items[:, k]).view(np.uint32).reshape(-1)

    return run


@operation("stmatrix", collective=True)
def compile_stmatrix(ins: Instruction, frame: Frame) -> Run:
    """ldmatrix the other way."""
    count = _matrices(ins)
    vector = ins.operands[1]
    words = [frame.read(item, _B32, ins) for item in (vector.items if isinstance(vector, Vector) else (vector,))]
    if len(words) != count:
        raise unknown(ins)
    access = Access(ins, frame, ins.operands[0], "shared", 2, 16, writes=True)
    transposed = "trans" in ins.parts

    def run(active: Active) -> None:
        rows = active.indices().reshape(-1, WARP)[:, : 8 * count].reshape(-1)
        mask = np.zeros(frame.threads, bool)
        mask[rows] = True
        (view, index, _) = access.pieces(Active(mask))[0]
        parts = [word[active.lanes].view(np.uint16).reshape(-1, 8, 8) for word in words]
        items = np.stack(parts, axis=1)
        if transposed:
            items = items.transpose(0, 1, 3, 2)
        view[index[:, None] + np.arange(8)] = items.reshape(-1, 8)

    return run


def _matrices(ins: Instruction) -> int:
    known_parts = {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta", "b16"}
    count = next((int(part[1:]) for part in ins.parts if part in ("x1", "x2", "x4")), 0)
    if not count or set(ins.parts[1:]) - known_parts:
        raise unknown(ins)
    return count

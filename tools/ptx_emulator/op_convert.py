"""cvt in all the directions that the kernels use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.ptx_emulator.frame import Frame
from tools.ptx_emulator.registry import Run, elementwise, operation, unknown
from tools.ptx_emulator.rounding import flushed, from_bfloat16, to_bfloat16, to_float32, to_float32_odd
from tools.ptx_emulator.syntax import Instruction
from tools.ptx_emulator.types import TYPES, PtxType

_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_MODES = ("rn", "rz", "rm", "rp")


@operation("cvt")
def compile_convert(ins: Instruction, frame: Frame) -> Run:
    found = [TYPES[part] for part in ins.parts[1:] if part in TYPES]
    others = [part for part in ins.parts[1:] if part not in TYPES]
    if len(found) != 2 or set(others) - {*_TO_INTEGER, *_MODES, "ftz", "sat", "rna", "relu"}:
        raise unknown(ins)
    to, of = found
    if to.name in ("f16x2", "bf16x2"):
        return _pack_halves(ins, frame, to, of)
    if to.name == "tf32":
        if "rna" not in others:
            raise unknown(ins)
        source = frame.read(ins.operands[1], of, ins)
        return elementwise(to_tf32, frame.write(ins.operands[0], TYPES["b32"], ins), source)
    if of.name in ("f16x2", "bf16x2", "tf32"):
        raise unknown(ins)
    source_type = TYPES["b16"] if of.name == "bf16" else of
    target_type = TYPES["b16"] if to.name in ("bf16", "f16") else to
    out = frame.write(ins.operands[0], target_type, ins)
    return elementwise(converter(to, of, others), out, frame.read(ins.operands[1], source_type, ins))


def converter(to: PtxType, of: PtxType, modifiers: list[str]) -> Callable[[np.ndarray], np.ndarray]:
    """The function from arrays of `of` to arrays of `to` (bits for the halves)."""
    floating = of.kind == "f" or of.name == "bf16"
    to_float = to.kind == "f" or to.name == "bf16"
    if not floating and not to_float:
        return _between_integers(to, of, "sat" in modifiers)
    if not floating:
        return _from_integer(to, modifiers)
    decode = from_bfloat16 if of.name == "bf16" else lambda values: values
    if "ftz" in modifiers:
        inner = decode
        decode = lambda values: flushed(inner(values))  # noqa: E731
    if not to_float:
        rounding = next((_TO_INTEGER[part] for part in modifiers if part in _TO_INTEGER), np.trunc)
        return lambda values: to_integer(rounding(decode(values)), to, of)
    return _between_floats(to, decode, modifiers)


def _between_integers(to: PtxType, of: PtxType, saturate: bool) -> Callable[[np.ndarray], np.ndarray]:
    if not saturate:
        return lambda values: values.astype(to.dtype)
    limits = np.iinfo(to.dtype)
    source = np.iinfo(of.dtype)
    low, high = max(limits.min, source.min), min(limits.max, source.max)
    return lambda values: np.clip(values, of.dtype.type(low), of.dtype.type(high)).astype(to.dtype)


def _from_integer(to: PtxType, modifiers: list[str]) -> Callable[[np.ndarray], np.ndarray]:
    mode = next((part for part in modifiers if part in _MODES), "rn")
    if to.name == "f16":
        return lambda values: values.astype(np.float64).astype(np.float16).view(np.uint16)
    if to.name == "bf16":
        return lambda values: to_bfloat16(to_float32_odd(values.astype(np.float64)))
    if to.bits == 32 and mode != "rn":
        return lambda values: to_float32(values.astype(np.float64), mode)
    return lambda values: values.astype(to.dtype)


def _between_floats(
    to: PtxType, decode: Callable[[np.ndarray], np.ndarray], modifiers: list[str]
) -> Callable[[np.ndarray], np.ndarray]:
    mode = next((part for part in modifiers if part in _MODES), "rn")
    integer = next((_TO_INTEGER[part] for part in modifiers if part in _TO_INTEGER), None)
    saturate, relu = "sat" in modifiers, "relu" in modifiers

    def prepared(values: np.ndarray) -> np.ndarray:
        result = decode(values)
        if integer is not None:
            result = integer(result)
        if saturate:
            result = np.where(np.isnan(result), 0, np.clip(result, 0, 1)).astype(result.dtype)
        if relu:
            result = np.where(result < 0, 0, result).astype(result.dtype)
        return result

    if to.name == "bf16":
        return lambda values: to_bfloat16(_narrowed(prepared(values)), mode)
    if to.name == "f16":
        return lambda values: to_half(prepared(values), mode)
    if to.bits == 32:
        return lambda values: to_float32(prepared(values), mode)
    return lambda values: prepared(values).astype(to.dtype)


def _narrowed(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.float64:
        return to_float32_odd(values)
    return values.astype(np.float32)


def to_half(values: np.ndarray, mode: str = "rn") -> np.ndarray:
    """The bits of float16, rounded to nearest even or towards zero."""
    half = values.astype(np.float16)
    if mode == "rz":
        beyond = np.abs(half.astype(values.dtype)) > np.abs(values)
        half = np.where(beyond, np.nextafter(half, np.float16(0)), half)
    return half.view(np.uint16)


def to_integer(values: np.ndarray, to: PtxType, of: PtxType) -> np.ndarray:
    """Whole floats -> integers, clamped; NaN is 0, or the top bit alone where a 64-bit type is in play."""
    limits = np.iinfo(to.dtype)
    wide = values.astype(np.float64)
    above, below = wide >= np.float64(limits.max), wide <= np.float64(limits.min)
    safe = np.where(above | below | np.isnan(wide), 0.0, wide)
    result = safe.astype(np.int64 if limits.max < 2**63 else np.uint64).astype(to.dtype)
    result = np.where(above, limits.max, np.where(below, limits.min, result)).astype(to.dtype)
    nan = 1 << (to.bits - 1) if to.bits == 64 or of.bits == 64 else 0
    bits = np.array(nan, f"u{to.bytes}").view(to.dtype)
    return np.where(np.isnan(wide), bits, result)


def to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 with its mantissa rounded to 10 bits, halves away from zero (.rna)."""
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x1000) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded, bits)


def _pack_halves(ins: Instruction, frame: Frame, to: PtxType, of: PtxType) -> Run:
    """cvt.rn.f16x2.f32 d, a, b: a goes to the upper half, b to the lower."""
    if of.name != "f32" or len(ins.operands) != 3:
        raise unknown(ins)
    one = converter(TYPES[to.name[:-2]], of, [part for part in ins.parts[1:] if part not in TYPES])
    out = frame.write(ins.operands[0], TYPES["b32"], ins)
    upper, lower = (frame.read(operand, of, ins) for operand in ins.operands[1:])
    return elementwise(
        lambda a, b: one(a).astype(np.uint32) << np.uint32(16) | one(b).astype(np.uint32), out, upper, lower
    )

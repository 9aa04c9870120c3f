"""Arithmetic on f16, f16x2, bf16 and bf16x2."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.ptx_emulator.frame import Frame
from tools.ptx_emulator.registry import Run, elementwise, known, type_of, unknown
from tools.ptx_emulator.rounding import from_bfloat16, odd_sum, to_bfloat16, to_float32_odd
from tools.ptx_emulator.syntax import Instruction
from tools.ptx_emulator.types import TYPES


def _minimum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), a, b), np.fmin(a, b))


def _maximum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), b, a), np.fmax(a, b))


# In float64 sums and products of halves are exact up to bits that cannot change the rounding of float16; for
# bfloat16, whose exponents span more, sums are rounded to odd.
_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "add": odd_sum,
    "sub": lambda a, b: odd_sum(a, -b),
    "mul": lambda a, b: a * b,
    "fma": lambda a, b, c: odd_sum(a * b, c),
    "min": _minimum,
    "max": _maximum,
    "neg": np.negative,
    "abs": np.abs,
}


def halves(name: str) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """(bits -> float64, float64 -> bits) of `name`, f16 or bf16."""
    if name.startswith("bf16"):
        return lambda bits: from_bfloat16(bits).astype(np.float64), lambda v: to_bfloat16(to_float32_odd(v))
    return lambda bits: bits.view(np.float16).astype(np.float64), lambda v: v.astype(np.float16).view(np.uint16)


def packed(function: Callable[..., np.ndarray], name: str) -> Callable[..., np.ndarray]:
    """`function` of float64 arrays as one of the bits of a half or of two packed halves."""
    decode, encode = halves(name)
    wide = np.uint32 if name.endswith("x2") else np.uint16

    def of_bits(*values: np.ndarray) -> np.ndarray:
        result = encode(function(*[decode(np.ascontiguousarray(value).view(np.uint16)) for value in values]))
        return np.ascontiguousarray(result).view(wide)

    return of_bits


def compile_half(ins: Instruction, frame: Frame) -> Run:
    of = type_of(ins)
    known(ins, "rn", "ftz", "sat", "relu", "NaN")
    if ins.root not in _FUNCTIONS:
        raise unknown(ins)
    function = _FUNCTIONS[ins.root]
    if "relu" in ins.parts:
        plain = function
        function = lambda *values: np.where((r := plain(*values)) > 0, r, np.where(np.isnan(r), r, 0.0))  # noqa: E731
    if "sat" in ins.parts:
        before = function
        function = lambda *values: np.where(np.isnan(r := before(*values)), 0.0, np.clip(r, 0, 1))  # noqa: E731
    if "NaN" in ins.parts:
        inner = function
        function = lambda a, b: np.where(np.isnan(a) | np.isnan(b), np.nan, inner(a, b))  # noqa: E731
    if "ftz" in ins.parts and not of.name.startswith("bf16"):
        whole = function
        function = lambda *values: _flushed(whole(*map(_flushed, values)))  # noqa: E731
    return _compiled(ins, frame, function)


def _flushed(values: np.ndarray) -> np.ndarray:
    """float16 denormals become zeros of their sign."""
    return np.where(np.abs(values) < 2.0**-14, np.copysign(0.0, values), values)


def compile_half_function(ins: Instruction, frame: Frame, function: Callable[[np.ndarray], np.ndarray]) -> Run:
    """tanh and ex2 of halves."""
    return _compiled(ins, frame, function)


def _compiled(ins: Instruction, frame: Frame, function: Callable[..., np.ndarray]) -> Run:
    of = type_of(ins)
    bits = TYPES["b32" if of.name.endswith("x2") else "b16"]
    out = frame.write(ins.operands[0], bits, ins)
    sources = [_bits(frame, operand, ins, of.name) for operand in ins.operands[1:]]
    return elementwise(packed(function, of.name), out, *sources)


def _bits(frame: Frame, operand: object, ins: Instruction, name: str) -> np.ndarray:
    return frame.read(operand, TYPES["b32" if name.endswith("x2") else "b16"], ins)

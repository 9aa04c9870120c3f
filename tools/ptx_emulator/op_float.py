"""Floating-point arithmetic in float32 and float64; halves are op_half's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.ptx_emulator import op_half
from tools.ptx_emulator.frame import Frame
from tools.ptx_emulator.registry import Run, elementwise, known, operation, type_of, universal, unknown
from tools.ptx_emulator.rounding import flushed, fused_float32, fused_float64, odd_sum, to_float32
from tools.ptx_emulator.syntax import Instruction

_MODES = ("rn", "rz", "rm", "rp")


def _minimum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), a, b), np.fmin(a, b))


def _maximum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), b, a), np.fmax(a, b))


_BINARY: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": _minimum,
    "max": _maximum,
    "copysign": lambda a, b: np.copysign(b, a),
}
_UNARY: dict[str, Callable[..., np.ndarray]] = {"neg": np.negative, "abs": np.abs}


def compile_float(ins: Instruction, frame: Frame) -> Run:
    """add, sub, mul, div, min, max, neg, abs, fma, mad of one float type."""
    of = type_of(ins)
    if of.bits == 16 or of.kind == "h":
        return op_half.compile_half(ins, frame)
    known(ins, *_MODES, "ftz", "sat", "approx", "full", "NaN")
    out = frame.write(ins.operands[0], of, ins)
    sources = [frame.read(operand, of, ins) for operand in ins.operands[1:]]
    function = _function(ins, of.dtype)
    if ins.root == "div" and of.bits == 32:
        function = roughened(function, ins, frame)
    if "NaN" in ins.parts:
        plain = function
        function = lambda a, b: np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), plain(a, b))  # noqa: E731
    if isinstance(function, np.ufunc) and not {"ftz", "sat"} & set(ins.parts):
        return universal(function, out, *sources)
    return elementwise(finished(function, ins), out, *sources)


def finished(function: Callable[..., np.ndarray], ins: Instruction) -> Callable[..., np.ndarray]:
    """`function` with .ftz on its inputs and output and .sat on its output, where the opcode asks."""
    result = function
    if "ftz" in ins.parts:
        inner = result
        result = lambda *values: flushed(inner(*map(flushed, values)))  # noqa: E731
    if "sat" in ins.parts:
        before = result
        result = lambda *values: np.where(np.isnan(r := before(*values)), 0, np.clip(r, 0, 1))  # noqa: E731
    return result


def _function(ins: Instruction, dtype: np.dtype) -> Callable[..., np.ndarray]:
    mode = next((part for part in ins.parts if part in _MODES), "rn")
    single = dtype == np.float32
    if ins.root in ("fma", "mad"):
        if mode == "rn":
            return fused_float32 if single else fused_float64
        if single:
            return lambda a, b, c: to_float32(odd_sum(np.multiply(a, b, dtype=np.float64), c.astype(np.float64)), mode)
    elif ins.root in _UNARY:
        return _UNARY[ins.root]
    elif mode == "rn" or ins.root in ("min", "max", "copysign"):
        return _BINARY[ins.root]
    elif single and ins.root in ("add", "sub"):
        sign = 1.0 if ins.root == "add" else -1.0
        return lambda a, b: to_float32(odd_sum(a.astype(np.float64), sign * b.astype(np.float64)), mode)
    elif single and ins.root == "mul":
        return lambda a, b: to_float32(np.multiply(a, b, dtype=np.float64), mode)
    raise unknown(ins)


@operation("fma", "copysign")
def compile_fused(ins: Instruction, frame: Frame) -> Run:
    return compile_float(ins, frame)


def _in_float64(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda a: function(a.astype(np.float64)).astype(a.dtype)


_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sqrt": np.sqrt,
    "rsqrt": _in_float64(lambda a: 1.0 / np.sqrt(a)),
    "rcp": np.reciprocal,
    "ex2": _in_float64(np.exp2),
    "lg2": _in_float64(np.log2),
    "sin": _in_float64(np.sin),
    "cos": _in_float64(np.cos),
    "tanh": _in_float64(np.tanh),
}


# Errors that the manual allows: relative, and absolute for what passes through zero.
_RELATIVE = {"sqrt": 2**-23, "rcp": 2**-23, "rsqrt": 2**-22.9, "ex2": 2**-22, "div": 2**-22, "tanh": 2**-11}
_ABSOLUTE = {"sin": 2**-20.5, "cos": 2**-20.5, "lg2": 2**-22}


def roughened(function: Callable[..., np.ndarray], ins: Instruction, frame: Frame) -> Callable[..., np.ndarray]:
    """`function` off by as much as an .approx one may be, to the side that the operand's last bit says."""
    if not frame.rough or not {"approx", "full"} & set(ins.parts):
        return function
    relative, absolute = _RELATIVE.get(ins.root, 0.0), _ABSOLUTE.get(ins.root, 0.0)

    def rough(*values: np.ndarray) -> np.ndarray:
        exact = function(*values).astype(np.float64)
        side = np.where(values[0].view(np.uint32) & np.uint32(1), 1.0, -1.0)
        return (exact * (1 + side * relative) + side * absolute).astype(values[0].dtype)

    return rough


@operation("sqrt", "rsqrt", "rcp", "ex2", "lg2", "sin", "cos", "tanh")
def compile_function(ins: Instruction, frame: Frame) -> Run:
    """The .approx functions give the correctly rounded value, or with `rough` the worst that a device may give."""
    of = type_of(ins)
    known(ins, "rn", "approx", "ftz")
    function = _FUNCTIONS[ins.root]
    if of.bits == 16 or of.kind == "h":
        return op_half.compile_half_function(ins, frame, function)
    out = frame.write(ins.operands[0], of, ins)
    if of.bits == 32:
        function = roughened(function, ins, frame)
    return elementwise(finished(function, ins), out, frame.read(ins.operands[1], of, ins))


@operation("testp")
def compile_test(ins: Instruction, frame: Frame) -> Run:
    of = type_of(ins)
    tests = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).tiny),
        "subnormal": lambda a: (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny),
    }
    if ins.parts[1] not in tests:
        raise unknown(ins)
    out, _ = frame.predicate(ins.operands[0], ins)
    return elementwise(tests[ins.parts[1]], out, frame.read(ins.operands[1], of, ins))

"""Python's operators over vectors of the same type, lane by lane, and over tiles of them.

    + -                 F32 and integers; integers wrap around
    *                   F32, I32, I16
    /                   F32
    - abs               F32 and signed integers; the smallest integer stays as it is
    & | ^ ~             integers and masks
    << >>               integers by a scalar of 0 .. bits - 1; >> keeps the sign, of U8 it brings in zeros
    < <= > >= == !=     two vectors of one type to a mask; with a NaN all but != are false
    tile[position]      one vector of a tile; the position, 0 up to its length, is not checked

Registered with numba when this module is imported.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import alloca_once_value
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin

from edgellm.simd.operation import Emitter, constant, lower_with, one_of_each, tiled
from edgellm.simd.vector import F32, I8, I16, I32, INTEGERS, MASKS, VECTORS, LanesType, TileType, VectorType, mask_of

_SIGNED = (F32, I32, I16, I8)


def _register(symbol: Any, result_of: Callable[..., types.Type | None], parameters: tuple[Any, ...], emit: Any) -> None:
    """Teach numba `symbol`: its result's type from its operands' (None: not ours), and its instructions."""

    def generic(self: AbstractTemplate, args: tuple[types.Type, ...], kws: dict[str, types.Type]) -> Any:
        if kws or len(args) != len(parameters) or not any(isinstance(operand, LanesType) for operand in args):
            return None
        one, count = one_of_each(args)
        result = result_of(*one)
        return None if result is None else tiled(result, args, one, count)

    infer_global(symbol)(type("VectorOperator", (AbstractTemplate,), {"key": symbol, "generic": generic}))

    lower_builtin(symbol, *parameters)(lower_with(emit))


def _binary(symbol: Any, in_place: Any, allowed: tuple[VectorType, ...], of_floats: str, of_integers: str) -> None:
    def emit(emitter: Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
        name = of_floats if emitter.operands[0].kind == "f32" else of_integers
        return getattr(emitter.builder, name)(a, b)

    for each in (symbol, in_place):
        _register(each, lambda a, b: a if a == b and a in allowed else None, (LanesType, LanesType), emit)


def _shift(symbol: Any, in_place: Any, of_signed: str, of_unsigned: str) -> None:
    def emit(emitter: Emitter, value: ir.Value, count: ir.Value) -> ir.Value:
        vector, scalar = emitter.operands
        lane = vector.llvm.element
        narrow = emitter.builder.trunc if scalar.bitwidth > lane.width else emitter.builder.zext
        if scalar.bitwidth != lane.width:
            count = narrow(count, lane)
        name = of_unsigned if vector.kind == "u8" else of_signed
        return getattr(emitter.builder, name)(value, emitter.splat(count, vector.llvm))

    def result_of(value: types.Type, count: types.Type) -> types.Type | None:
        return value if value in INTEGERS and isinstance(count, types.Integer) else None

    for each in (symbol, in_place):
        _register(each, result_of, (LanesType, types.Integer), emit)


def _comparison(symbol: Any, sign: str) -> None:
    def emit(emitter: Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
        vector = emitter.operands[0]
        if vector.kind == "f32":
            compare = emitter.builder.fcmp_unordered if sign == "!=" else emitter.builder.fcmp_ordered
        else:
            compare = emitter.builder.icmp_unsigned if vector.kind == "u8" else emitter.builder.icmp_signed
        return compare(sign, a, b)

    _register(symbol, lambda a, b: mask_of(a) if a == b and a in VECTORS else None, (LanesType, LanesType), emit)


def _unary(symbol: Any, allowed: tuple[VectorType, ...], emit: Any) -> None:
    _register(symbol, lambda a: a if a in allowed else None, (LanesType,), emit)


def _negate(emit: Emitter, value: ir.Value) -> ir.Value:
    if emit.result.kind == "f32":
        return emit.builder.fneg(value)
    return emit.builder.sub(constant(value.type, 0), value)


def _absolute(emit: Emitter, value: ir.Value) -> ir.Value:
    suffix = f".v{emit.result.lanes}{emit.result.kind}"
    if emit.result.kind == "f32":
        return emit.call("llvm.fabs" + suffix, value.type, value)
    return emit.call("llvm.abs" + suffix, value.type, value, ir.Constant(ir.IntType(1), 0))


def _register_item() -> None:
    def generic(self: AbstractTemplate, args: tuple[types.Type, ...], kws: dict[str, types.Type]) -> Any:
        fits = len(args) == 2 and isinstance(args[0], TileType) and isinstance(args[1], types.Integer)
        return signature(args[0].element, args[0], types.intp) if fits else None

    template = type("TileItem", (AbstractTemplate,), {"key": operator.getitem, "generic": generic})
    infer_global(operator.getitem)(template)

    @lower_builtin(operator.getitem, TileType, types.Integer)
    def lower(context: Any, builder: ir.IRBuilder, sig: Any, values: tuple[ir.Value, ...]) -> ir.Value:
        slot = alloca_once_value(builder, values[0])
        zero = ir.Constant(values[1].type, 0)
        return builder.load(builder.gep(slot, [zero, values[1]], inbounds=True))


def _register_all() -> None:
    numbers, bits = VECTORS, (*INTEGERS, *MASKS)
    _binary(operator.add, operator.iadd, numbers, "fadd", "add")
    _binary(operator.sub, operator.isub, numbers, "fsub", "sub")
    _binary(operator.mul, operator.imul, (F32, I32, I16), "fmul", "mul")
    _binary(operator.truediv, operator.itruediv, (F32,), "fdiv", "")
    _binary(operator.and_, operator.iand, bits, "", "and_")
    _binary(operator.or_, operator.ior, bits, "", "or_")
    _binary(operator.xor, operator.ixor, bits, "", "xor")
    _shift(operator.lshift, operator.ilshift, "shl", "shl")
    _shift(operator.rshift, operator.irshift, "ashr", "lshr")
    for symbol, sign in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("eq", "=="), ("ne", "!=")):
        _comparison(getattr(operator, symbol), sign)
    _unary(operator.neg, _SIGNED, _negate)
    _unary(abs, _SIGNED, _absolute)
    _unary(operator.invert, bits, lambda emit, value: emit.builder.not_(value))

    _register_item()


_register_all()

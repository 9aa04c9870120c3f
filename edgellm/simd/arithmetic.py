"""Making vectors, arithmetic that has no operator, comparisons put to use, reductions."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba.core import types

from edgellm.simd.operation import Emitter, constant, form, operation
from edgellm.simd.target import TARGET
from edgellm.simd.vector import F32, I8, I16, I32, U8, VECTORS, mask_of

_FIRST = ir.Constant(ir.IntType(32), 0)


@operation(form(F32))
def zero_f32(emit: Emitter) -> ir.Value:
    """0.0 in every lane."""
    return constant(F32.llvm, 0.0)


@operation(form(I32))
def zero_i32(emit: Emitter) -> ir.Value:
    """0 in every lane."""
    return constant(I32.llvm, 0)


@operation(form(F32, types.float32))
def splat_f32(emit: Emitter, scalar: ir.Value) -> ir.Value:
    """The scalar, rounded to float32, in every lane."""
    return emit.splat(scalar, F32.llvm)


@operation(form(I32, types.int32))
def splat_i32(emit: Emitter, scalar: ir.Value) -> ir.Value:
    """The scalar's low 32 bits in every lane."""
    return emit.splat(scalar, I32.llvm)


@operation(form(I16, types.int16))
def splat_i16(emit: Emitter, scalar: ir.Value) -> ir.Value:
    """The scalar's low 16 bits in every lane."""
    return emit.splat(scalar, I16.llvm)


@operation(form(I8, types.int8))
def splat_i8(emit: Emitter, scalar: ir.Value) -> ir.Value:
    """The scalar's low 8 bits in every lane."""
    return emit.splat(scalar, I8.llvm)


@operation(form(U8, types.uint8))
def splat_u8(emit: Emitter, scalar: ir.Value) -> ir.Value:
    """The scalar's low 8 bits in every lane."""
    return emit.splat(scalar, U8.llvm)


@operation(form(mask_of(F32), types.intp))
def first_n(emit: Emitter, count: ir.Value) -> ir.Value:
    """A mask over 32-bit lanes that holds for the first `count` of them, for the tail of a row."""
    return emit.first(count, F32.lanes)


@operation(form(F32, F32, F32, F32))
def fma(emit: Emitter, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a * b + c, rounded once; twice where `TARGET.has_fma` is false, as one rounding would cost a call a lane."""
    if TARGET.has_fma:
        return emit.call(f"llvm.fma.v{F32.lanes}f32", F32.llvm, a, b, c)
    return emit.builder.fadd(emit.builder.fmul(a, b), c)


def _choose_by(emit: Emitter, sign: str, a: ir.Value, b: ir.Value) -> ir.Value:
    """a where `a sign b`, else b."""
    if emit.operands[0].kind == "f32":
        compare = emit.builder.fcmp_ordered
    else:
        compare = emit.builder.icmp_unsigned if emit.operands[0].kind == "u8" else emit.builder.icmp_signed
    return emit.builder.select(compare(sign, a, b), a, b)


@operation(*(form(vector, vector, vector) for vector in VECTORS))
def minimum(emit: Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
    """a where a < b, else b: b where either is NaN, as one instruction has it on x86."""
    return _choose_by(emit, "<", a, b)


@operation(*(form(vector, vector, vector) for vector in VECTORS))
def maximum(emit: Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
    """a where a > b, else b: b where either is NaN."""
    return _choose_by(emit, ">", a, b)


@operation(form(F32, F32))
def sqrt(emit: Emitter, value: ir.Value) -> ir.Value:
    """The square root, correctly rounded; NaN below zero."""
    return emit.call(f"llvm.sqrt.v{F32.lanes}f32", F32.llvm, value)


@operation(*(form(vector, mask_of(vector), vector, vector) for vector in VECTORS))
def select(emit: Emitter, mask: ir.Value, yes: ir.Value, no: ir.Value) -> ir.Value:
    """The lane of `yes` where the mask holds, else that of `no`."""
    return emit.builder.select(mask, yes, no)


def _fold(emit: Emitter, value: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """Upper half onto lower half until one lane is left: an order of its own that no compiler may change."""
    while value.type.count > 1:
        value = combine(*emit.halves(value))
    return emit.builder.extract_element(value, _FIRST)


@operation(form(types.float32, F32), form(types.int32, I32))
def reduce_add(emit: Emitter, value: ir.Value) -> ir.Value:
    """The sum of the lanes, halves folded: ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)) of eight. I32 wraps around."""
    return _fold(emit, value, emit.builder.fadd if emit.operands[0] == F32 else emit.builder.add)


@operation(form(types.float32, F32), form(types.int32, I32))
def reduce_max(emit: Emitter, value: ir.Value) -> ir.Value:
    """The largest lane; with NaN among them, whichever `maximum` leaves of the folded halves."""
    return _fold(emit, value, lambda a, b: _choose_by(emit, ">", a, b))

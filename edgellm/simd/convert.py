"""Between types: conversions by value, by bits, to wider lanes, and lanes that change places."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgellm.simd.lowering import LOWERING
from edgellm.simd.operation import Emitter, constant, form, operation
from edgellm.simd.target import TARGET
from edgellm.simd.vector import F32, I8, I16, I32, U8, VECTORS

_CURRENT_ROUNDING = 4  # of the processor, to nearest even


@operation(form(F32, I32))
def convert_f32(emit: Emitter, value: ir.Value) -> ir.Value:
    """The nearest float, ties to even."""
    return emit.builder.sitofp(value, F32.llvm)


@operation(form(I32, F32))
def convert_i32(emit: Emitter, value: ir.Value) -> ir.Value:
    """The nearest integer, ties to even; beyond int32 the nearer end, 0 for NaN."""
    rounded = emit.call(f"llvm.nearbyint.v{F32.lanes}f32", F32.llvm, value)
    if TARGET.arch == "aarch64":
        return emit.call(f"llvm.fptosi.sat.v{I32.lanes}i32.v{F32.lanes}f32", I32.llvm, rounded)
    # On x86 that becomes a dozen instructions a lane: what does not fit is replaced before, what is too large after.
    builder = emit.builder
    too_large = builder.fcmp_ordered(">=", rounded, constant(F32.llvm, 2.0**31))
    zero = builder.select(builder.fcmp_unordered("uno", rounded, rounded), constant(F32.llvm, 0.0), rounded)
    low = builder.fcmp_ordered("<", zero, constant(F32.llvm, -(2.0**31)))
    inside = builder.select(low, constant(F32.llvm, -(2.0**31)), zero)
    inside = builder.select(too_large, constant(F32.llvm, 0.0), inside)
    return builder.select(too_large, constant(I32.llvm, 2**31 - 1), builder.fptosi(inside, I32.llvm))


@operation(form(I32, F32))
def round_i32(emit: Emitter, value: ir.Value) -> ir.Value:
    """The nearest integer, ties to even, of what lies in int32; of anything else some integer."""
    if TARGET.arch != "x86":
        rounded = emit.call(f"llvm.nearbyint.v{F32.lanes}f32", F32.llvm, value)
        return emit.call(f"llvm.fptosi.sat.v{I32.lanes}i32.v{F32.lanes}f32", I32.llvm, rounded)
    name = {16: "avx512.mask.cvtps2dq.512", 8: "avx.cvt.ps2dq.256", 4: "sse2.cvtps2dq"}[F32.lanes]
    if F32.lanes < 16:
        return emit.call(f"llvm.x86.{name}", I32.llvm, value)
    all_lanes, as_it_is = ir.Constant(ir.IntType(16), -1), ir.Constant(ir.IntType(32), _CURRENT_ROUNDING)
    return emit.call(f"llvm.x86.{name}", I32.llvm, value, constant(I32.llvm, 0), all_lanes, as_it_is)


def _bitcast(to: Any) -> Any:
    def bitcast(emit: Emitter, value: ir.Value) -> ir.Value:
        return emit.builder.bitcast(value, to.llvm)

    bitcast.__name__, bitcast.__doc__ = f"bitcast_{to.kind}", f"The same bits as {to.kind} lanes, little-endian."
    return operation(*(form(to, vector) for vector in VECTORS))(bitcast)


bitcast_f32 = _bitcast(F32)
bitcast_i32 = _bitcast(I32)
bitcast_i16 = _bitcast(I16)
bitcast_i8 = _bitcast(I8)
bitcast_u8 = _bitcast(U8)


def _widen(emit: Emitter, half: ir.Value) -> ir.Value:
    extend = emit.builder.zext if emit.operands[0] == U8 else emit.builder.sext
    return extend(half, emit.result.llvm)


@operation(form(I16, I8), form(I16, U8), form(I32, I16))
def widen_low(emit: Emitter, value: ir.Value) -> ir.Value:
    """The lower half of the lanes, each twice as wide."""
    return _widen(emit, emit.halves(value)[0])


@operation(form(I16, I8), form(I16, U8), form(I32, I16))
def widen_high(emit: Emitter, value: ir.Value) -> ir.Value:
    """The upper half of the lanes, each twice as wide."""
    return _widen(emit, emit.halves(value)[1])


@operation(form(U8, U8))
def low_nibbles(emit: Emitter, value: ir.Value) -> ir.Value:
    """Bits 0 to 3 of each byte."""
    return emit.builder.and_(value, constant(U8.llvm, 0x0F))


@operation(form(U8, U8))
def high_nibbles(emit: Emitter, value: ir.Value) -> ir.Value:
    """Bits 4 to 7 of each byte."""
    # Shifted as 32-bit lanes: no processor shifts bytes, and what comes in from the neighbour is masked off anyway.
    words = emit.builder.bitcast(value, I32.llvm)
    words = emit.builder.lshr(words, constant(I32.llvm, 4))
    return emit.builder.and_(emit.builder.bitcast(words, U8.llvm), constant(U8.llvm, 0x0F))


@operation(form(U8, U8, U8), form(I8, I8, U8))
def table_lookup(emit: Emitter, table: ir.Value, index: ir.Value) -> ir.Value:
    """table[index] within each block of 16 bytes; every index is 0 .. 15, any other gives what the processor likes."""
    return LOWERING.table_lookup(emit, table, index)


@operation(*(form(vector, vector, vector) for vector in VECTORS))
def interleave_low(emit: Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
    """a0 b0 a1 b1 ... of the lower halves."""
    lanes = a.type.count
    return emit.shuffle(a, b, [lane // 2 + lanes * (lane % 2) for lane in range(lanes)])


@operation(*(form(vector, vector, vector) for vector in VECTORS))
def interleave_high(emit: Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
    """a b a b ... of the upper halves."""
    lanes = a.type.count
    return emit.shuffle(a, b, [lanes // 2 + lane // 2 + lanes * (lane % 2) for lane in range(lanes)])


@operation(*(form(vector, vector, vector) for vector in VECTORS))
def concat_even(emit: Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
    """a0 a2 ... b0 b2 ...: undoes an interleaving, with `concat_odd`."""
    return emit.shuffle(a, b, range(0, 2 * a.type.count, 2))


@operation(*(form(vector, vector, vector) for vector in VECTORS))
def concat_odd(emit: Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
    """a1 a3 ... b1 b3 ..."""
    return emit.shuffle(a, b, range(1, 2 * a.type.count, 2))

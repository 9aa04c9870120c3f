"""Vectors from and to memory: unaligned, from a byte arena at a byte offset or from a typed array at an element.

Arrays are one-dimensional and C-contiguous. `index` counts the elements of the array as it is: bytes in an array of
bytes, floats in an array of floats. It is never negative. numba has no float16 on the CPU: pass such arrays as uint16.
Compiled with numba's bounds checks (`NUMBA_BOUNDSCHECK=1`) every access is checked; else none is.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from edgellm.simd.lowering import LOWERING
from edgellm.simd.operation import LLVM_VERSION, ArrayOf, Emitter, constant, form, operation
from edgellm.simd.vector import F32, I8, I16, I32, U8, VECTORS

_BYTE, _HALF, _WORD = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_HALVES = (types.uint16, types.int16)
_OWN = {F32: (types.float32,), I32: (types.int32, types.uint32), I16: _HALVES, I8: (), U8: ()}
_INDEX = types.intp
# Masked accesses take their alignment as an operand up to LLVM 21; from 22 on it is 1 unless an attribute says more.
_UNALIGNED = () if LLVM_VERSION >= 22 else (ir.Constant(_WORD, 1),)


def _read(emit: Emitter, array: ir.Value, index: ir.Value, element: ir.Type, lanes: int) -> ir.Value:
    vector = ir.VectorType(element, lanes)
    size = lanes * (4 if isinstance(element, ir.FloatType) else element.width // 8)
    return emit.builder.load(emit.pointer(0, array, index, vector, size), align=1)


def _write(emit: Emitter, array: ir.Value, index: ir.Value, value: ir.Value) -> None:
    element = value.type.element
    size = value.type.count * (4 if isinstance(element, ir.FloatType) else element.width // 8)
    emit.builder.store(value, emit.pointer(0, array, index, value.type, size), align=1)


def _load(vector: Any, name: str) -> Any:
    def load(emit: Emitter, array: ir.Value, index: ir.Value) -> ir.Value:
        return _read(emit, array, index, vector.llvm.element, vector.lanes)

    load.__name__, load.__doc__ = name, f"{vector.kind} lanes as they lie in memory."
    return operation(form(vector, ArrayOf(*_OWN[vector]), _INDEX))(load)


load_f32 = _load(F32, "load_f32")
load_i32 = _load(I32, "load_i32")
load_i16 = _load(I16, "load_i16")
load_i8 = _load(I8, "load_i8")
load_u8 = _load(U8, "load_u8")


@operation(form(F32, ArrayOf(*_HALVES), _INDEX))
def load_f16(emit: Emitter, array: ir.Value, index: ir.Value) -> ir.Value:
    """As many halves as F32 has lanes, widened exactly."""
    return LOWERING.half_to_float(emit, _read(emit, array, index, _HALF, F32.lanes))


@operation(form(F32, ArrayOf(*_HALVES), _INDEX))
def load_bf16(emit: Emitter, array: ir.Value, index: ir.Value) -> ir.Value:
    """As many bfloat16 as F32 has lanes, widened exactly: they are the upper halves of floats."""
    words = emit.builder.zext(_read(emit, array, index, _HALF, F32.lanes), I32.llvm)
    return emit.builder.bitcast(emit.builder.shl(words, constant(I32.llvm, 16)), F32.llvm)


@operation(form(I32, ArrayOf(), _INDEX))
def load_i8_to_i32(emit: Emitter, array: ir.Value, index: ir.Value) -> ir.Value:
    """As many signed bytes as I32 has lanes."""
    return emit.builder.sext(_read(emit, array, index, _BYTE, I32.lanes), I32.llvm)


@operation(form(I32, ArrayOf(), _INDEX))
def load_u8_to_i32(emit: Emitter, array: ir.Value, index: ir.Value) -> ir.Value:
    """As many unsigned bytes as I32 has lanes."""
    return emit.builder.zext(_read(emit, array, index, _BYTE, I32.lanes), I32.llvm)


@operation(form(F32, ArrayOf(types.float32), _INDEX))
def broadcast_f32(emit: Emitter, array: ir.Value, index: ir.Value) -> ir.Value:
    """One float of memory in every lane."""
    scalar = emit.builder.load(emit.pointer(0, array, index, ir.FloatType(), 4), align=1)
    return emit.splat(scalar, F32.llvm)


@operation(form(I32, ArrayOf(*_OWN[I32]), _INDEX))
def broadcast_i32(emit: Emitter, array: ir.Value, index: ir.Value) -> ir.Value:
    """One int32 of memory in every lane."""
    scalar = emit.builder.load(emit.pointer(0, array, index, _WORD, 4), align=1)
    return emit.splat(scalar, I32.llvm)


@operation(form(I8, ArrayOf(*_OWN[I32]), _INDEX))
def broadcast_i8x4(emit: Emitter, array: ir.Value, index: ir.Value) -> ir.Value:
    """Four bytes of memory over and over: the quad of activations that every lane's four weights meet in a dot."""
    scalar = emit.builder.load(emit.pointer(0, array, index, _WORD, 4), align=1)
    return emit.builder.bitcast(emit.splat(scalar, I32.llvm), I8.llvm)


@operation(form(U8, ArrayOf(), _INDEX))
def broadcast_u8x16(emit: Emitter, array: ir.Value, index: ir.Value) -> ir.Value:
    """Sixteen bytes of memory over and over: a table for `table_lookup`."""
    block = _read(emit, array, index, _BYTE, 16)
    return emit.shuffle(block, block, [lane % 16 for lane in range(U8.lanes)])


@operation(*(form(types.void, ArrayOf(*_OWN[vector], written=True), _INDEX, vector) for vector in VECTORS))
def store(emit: Emitter, array: ir.Value, index: ir.Value, value: ir.Value) -> None:
    """The lanes as they are."""
    _write(emit, array, index, value)


@operation(form(types.void, ArrayOf(*_HALVES, written=True), _INDEX, F32))
def store_f16(emit: Emitter, array: ir.Value, index: ir.Value, value: ir.Value) -> None:
    """The lanes as halves, to nearest even: infinity from 65520 on, NaN stays NaN."""
    _write(emit, array, index, LOWERING.float_to_half(emit, value))


@operation(form(types.void, ArrayOf(*_HALVES, written=True), _INDEX, F32))
def store_bf16(emit: Emitter, array: ir.Value, index: ir.Value, value: ir.Value) -> None:
    """The lanes as bfloat16, to nearest even: NaN stays NaN."""
    builder = emit.builder
    word = builder.bitcast(value, I32.llvm)
    high = builder.lshr(word, constant(I32.llvm, 16))
    odd = builder.and_(high, constant(I32.llvm, 1))
    rounded = builder.add(builder.add(word, constant(I32.llvm, 0x7FFF)), odd)
    quiet = builder.or_(high, constant(I32.llvm, 0x40))  # a payload in the lower half alone would become infinity
    is_number = builder.fcmp_ordered("==", value, value)
    result = builder.select(is_number, builder.lshr(rounded, constant(I32.llvm, 16)), quiet)
    _write(emit, array, index, builder.trunc(result, ir.VectorType(_HALF, F32.lanes)))


@operation(form(types.void, ArrayOf(written=True), _INDEX, I32))
def store_i32_to_i8(emit: Emitter, array: ir.Value, index: ir.Value, value: ir.Value) -> None:
    """The lanes as signed bytes, what lies outside -128 .. 127 at the nearer end."""
    _write(emit, array, index, _narrowed(emit, value, _BYTE))


@operation(form(types.void, ArrayOf(*_HALVES, written=True), _INDEX, I32))
def store_i32_to_i16(emit: Emitter, array: ir.Value, index: ir.Value, value: ir.Value) -> None:
    """The lanes as signed words, what lies outside -32768 .. 32767 at the nearer end."""
    _write(emit, array, index, _narrowed(emit, value, _HALF))


def _narrowed(emit: Emitter, value: ir.Value, element: ir.IntType) -> ir.Value:
    """32-bit lanes as signed `element`, what does not fit at the nearer end."""
    name, kind, top = f".v{I32.lanes}i32", I32.llvm, 2 ** (element.width - 1)
    capped = emit.call("llvm.smin" + name, kind, value, constant(kind, top - 1))
    capped = emit.call("llvm.smax" + name, kind, capped, constant(kind, -top))
    return emit.builder.trunc(capped, ir.VectorType(element, I32.lanes))


@operation(form(types.void, ArrayOf(types.int32, written=True), _INDEX, _INDEX, I32))
def store_quads(emit: Emitter, array: ir.Value, index: ir.Value, stride: ir.Value, value: ir.Value) -> None:
    """The lanes' lower bytes, four to an int32: lanes 0-3 at `index`, 4-7 at `index` + `stride`, and so on."""
    builder = emit.builder
    quads = builder.bitcast(builder.trunc(value, ir.VectorType(_BYTE, I32.lanes)), ir.VectorType(_WORD, I32.lanes // 4))
    for quad in range(I32.lanes // 4):
        word = builder.extract_element(quads, ir.Constant(_WORD, quad))
        builder.store(word, emit.pointer(0, array, index, _WORD, 4), align=1)
        index = builder.add(index, stride)


def _size_of(emit: Emitter, count: ir.Value) -> ir.Value:
    return emit.builder.mul(count, ir.Constant(count.type, 4))


@operation(form(F32, ArrayOf(types.float32), _INDEX, _INDEX))
def load_n_f32(emit: Emitter, array: ir.Value, index: ir.Value, count: ir.Value) -> ir.Value:
    """The first `count` lanes (0 .. all) from memory, zero in the others, whose memory is not touched."""
    pointer = emit.pointer(0, array, index, F32.llvm, _size_of(emit, count))
    name = f"llvm.masked.load.v{F32.lanes}f32.p0"
    return emit.call(name, F32.llvm, pointer, *_UNALIGNED, emit.first(count, F32.lanes), constant(F32.llvm, 0.0))


@operation(form(types.void, ArrayOf(types.float32, written=True), _INDEX, F32, _INDEX))
def store_n(emit: Emitter, array: ir.Value, index: ir.Value, value: ir.Value, count: ir.Value) -> None:
    """The first `count` lanes (0 .. all); memory beyond them is not touched."""
    pointer = emit.pointer(0, array, index, F32.llvm, _size_of(emit, count))
    mask = emit.first(count, F32.lanes)
    emit.call(f"llvm.masked.store.v{F32.lanes}f32.p0", ir.VoidType(), value, pointer, *_UNALIGNED, mask)


@operation(form(types.void, ArrayOf(types.float32, types.int32, types.uint32, *_HALVES), _INDEX))
def prefetch(emit: Emitter, array: ir.Value, index: ir.Value) -> None:
    """Ask for the cache line of that element, to be read soon and often. Beyond the array's end it does nothing."""
    _ask(emit, array, index, 3)


@operation(form(types.void, ArrayOf(types.float32, types.int32, types.uint32, *_HALVES), _INDEX))
def prefetch_l2(emit: Emitter, array: ir.Value, index: ir.Value) -> None:
    """As `prefetch`, but no nearer than the second cache, which waits for more lines at a time than the first."""
    _ask(emit, array, index, 2)


def _ask(emit: Emitter, array: ir.Value, index: ir.Value, locality: int) -> None:
    pointer = emit.pointer(0, array, index, _BYTE, None)
    arguments = [ir.Constant(_WORD, value) for value in (0, locality, 1)]  # read, how many caches keep it, data
    emit.call("llvm.prefetch.p0", ir.VoidType(), pointer, *arguments)

"""64-bit ARM: NEON, with the dot product instructions (Cortex-A76 on, Jetson Orin, Apple) and without them."""

from __future__ import annotations

from llvmlite import ir
from numba.core.cgutils import get_or_insert_function

from edgellm.simd.generic import HalfHardware
from edgellm.simd.operation import Emitter, constant

_I32X4 = ir.VectorType(ir.IntType(32), 4)
_I16X8 = ir.VectorType(ir.IntType(16), 8)
_I64 = ir.IntType(64)


class Neon(HalfHardware):
    """Without dotprod: products of bytes in 16 bits, added pairwise into 32."""

    def dot_u7i8(self, emit: Emitter, acc: ir.Value, u: ir.Value, s: ir.Value) -> ir.Value:
        """A pair of products stays within 2 * 127 * 128 = 32512, so one addition can be done in 16 bits."""
        pairs = emit.call("llvm.aarch64.neon.addp.v8i16", _I16X8, *self._products(emit, u, s))
        return emit.builder.add(acc, self._widen_pairs(emit, pairs))

    def dot_i8i8(self, emit: Emitter, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """2 * -128 * -128 = 32768 leaves 16 bits: each product is widened before it is added."""
        pairs = [self._widen_pairs(emit, products) for products in self._products(emit, a, b)]
        return emit.builder.add(acc, emit.call("llvm.aarch64.neon.addp.v4i32", _I32X4, *pairs))

    def dot_u8i8(self, emit: Emitter, acc: ir.Value, u: ir.Value, s: ir.Value) -> ir.Value:
        """(u - 128) . s + 128 . s, where u - 128 is a signed byte."""
        builder = emit.builder
        lowered = self.dot_i8i8(emit, acc, builder.xor(u, constant(u.type, 0x80)), s)
        sums = emit.call("llvm.aarch64.neon.saddlp.v8i16.v16i8", _I16X8, s)
        return builder.add(lowered, builder.shl(self._widen_pairs(emit, sums), constant(_I32X4, 7)))

    def dot_i16i16(self, emit: Emitter, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """Products of words in 32 bits, added pairwise."""
        pairs = zip(emit.halves(a), emit.halves(b), strict=True)
        products = [emit.call("llvm.aarch64.neon.smull.v4i32", _I32X4, *pair) for pair in pairs]
        return emit.builder.add(acc, emit.call("llvm.aarch64.neon.addp.v4i32", _I32X4, *products))

    def table_lookup(self, emit: Emitter, table: ir.Value, index: ir.Value) -> ir.Value:
        return emit.call("llvm.aarch64.neon.tbl1.v16i8", table.type, table, index)

    def pause(self, emit: Emitter) -> None:
        """`isb` waits long enough to count where `yield`, a hint that most cores ignore, does not."""
        emit.call("llvm.aarch64.isb", ir.VoidType(), ir.Constant(ir.IntType(32), 15))

    def ticks(self, emit: Emitter) -> ir.Value:
        """The virtual counter: the cycle counter is closed to programs."""
        name = emit.builder.module.add_metadata(["cntvct_el0"])
        kind = ir.FunctionType(_I64, [ir.MetaDataType()])
        read = get_or_insert_function(emit.builder.module, kind, "llvm.read_volatile_register.i64")
        return emit.builder.call(read, [name])

    def _products(self, emit: Emitter, a: ir.Value, b: ir.Value) -> list[ir.Value]:
        pairs = zip(emit.halves(a), emit.halves(b), strict=True)
        return [emit.call("llvm.aarch64.neon.smull.v8i16", _I16X8, *pair) for pair in pairs]

    def _widen_pairs(self, emit: Emitter, words: ir.Value) -> ir.Value:
        return emit.call("llvm.aarch64.neon.saddlp.v4i32.v8i16", _I32X4, words)


class NeonDotprod(Neon):
    """With sdot: four products of bytes into each 32-bit lane."""

    def dot_i8i8(self, emit: Emitter, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        return emit.call("llvm.aarch64.neon.sdot.v4i32.v16i8", _I32X4, acc, a, b)

    def dot_u7i8(self, emit: Emitter, acc: ir.Value, u: ir.Value, s: ir.Value) -> ir.Value:
        """A byte up to 127 is the same signed."""
        return self.dot_i8i8(emit, acc, u, s)

    def dot_u8i8(self, emit: Emitter, acc: ir.Value, u: ir.Value, s: ir.Value) -> ir.Value:
        """(u - 128) . s + 64 . s + 64 . s, as 128 is no signed byte."""
        half = constant(u.type, 64)
        lowered = self.dot_i8i8(emit, acc, emit.builder.xor(u, constant(u.type, 0x80)), s)
        return self.dot_i8i8(emit, self.dot_i8i8(emit, lowered, half, s), half, s)

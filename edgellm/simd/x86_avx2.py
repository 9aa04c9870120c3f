"""x86 without AVX-512: what any 64-bit x86 has, AVX2, and AVX-VNNI, which differs by the dot product only."""

from __future__ import annotations

from llvmlite import ir

from edgellm.simd.generic import Generic, HalfHardware
from edgellm.simd.operation import LLVM_VERSION, Emitter, constant

_I16 = ir.IntType(16)
_I64 = ir.IntType(64)


class X86Waiting:
    """The spin hint and the time stamp counter, which every x86 has."""

    def pause(self, emit: Emitter) -> None:
        emit.call("llvm.x86.sse2.pause", ir.VoidType())

    def ticks(self, emit: Emitter) -> ir.Value:
        return emit.call("llvm.readcyclecounter", _I64)


class X86(X86Waiting, Generic):
    """Any 64-bit x86."""


class Avx2(X86Waiting, HalfHardware):
    """256-bit integers, FMA, F16C."""

    def dot_u7i8(self, emit: Emitter, acc: ir.Value, u: ir.Value, s: ir.Value) -> ir.Value:
        """Pairs of products saturate at 16 bits; with u <= 127 they stay within 2 * 127 * 128 = 32512."""
        pairs = self._multiply_pairs(emit, u, s)
        return emit.builder.add(acc, self._add_pairs(emit, pairs, constant(pairs.type, 1)))

    def dot_u8i8(self, emit: Emitter, acc: ir.Value, u: ir.Value, s: ir.Value) -> ir.Value:
        """The lower seven bits and the top bit apart: 2 * 128 * -128 = -32768 is the most that the top bit adds."""
        acc = self.dot_u7i8(emit, acc, emit.builder.and_(u, constant(u.type, 0x7F)), s)
        return self.dot_u7i8(emit, acc, emit.builder.and_(u, constant(u.type, 0x80)), s)

    def dot_i8i8(self, emit: Emitter, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """Even and odd bytes widened to 16 bits: no pair of products of those leaves 32 bits."""
        builder = emit.builder
        words = ir.VectorType(_I16, a.type.count // 2)
        a, b = builder.bitcast(a, words), builder.bitcast(b, words)
        eight = constant(words, 8)
        even = [builder.ashr(builder.shl(value, eight), eight) for value in (a, b)]
        odd = [builder.ashr(value, eight) for value in (a, b)]
        return builder.add(builder.add(acc, self._add_pairs(emit, *even)), self._add_pairs(emit, *odd))

    def dot_i16i16(self, emit: Emitter, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        return emit.builder.add(acc, self._add_pairs(emit, a, b))

    def table_lookup(self, emit: Emitter, table: ir.Value, index: ir.Value) -> ir.Value:
        return emit.call("llvm.x86.avx2.pshuf.b", table.type, table, index)

    def _multiply_pairs(self, emit: Emitter, u: ir.Value, s: ir.Value) -> ir.Value:
        return emit.call("llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(_I16, u.type.count // 2), u, s)

    def _add_pairs(self, emit: Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
        """a0 * b0 + a1 * b1 of neighbouring 16-bit lanes, in 32."""
        return emit.call("llvm.x86.avx2.pmadd.wd", ir.VectorType(ir.IntType(32), a.type.count // 2), a, b)


class VnniDots:
    """Dot products by vpdpbusd, which keeps all 32 bits, so that u may be any byte, and by vpdpwssd."""

    vpdpbusd: str
    vpdpwssd: str

    def dot_u8i8(self, emit: Emitter, acc: ir.Value, u: ir.Value, s: ir.Value) -> ir.Value:
        return self._call(emit, self.vpdpbusd, acc, u, s)

    def dot_u7i8(self, emit: Emitter, acc: ir.Value, u: ir.Value, s: ir.Value) -> ir.Value:
        return self.dot_u8i8(emit, acc, u, s)

    def dot_i8i8(self, emit: Emitter, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """(a + 128) . b - 128 . b, where a + 128 is an unsigned byte."""
        top = constant(a.type, 0x80)
        lifted = self.dot_u8i8(emit, acc, emit.builder.xor(a, top), b)
        return emit.builder.sub(lifted, self.dot_u8i8(emit, constant(acc.type, 0), top, b))

    def dot_i16i16(self, emit: Emitter, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._call(emit, self.vpdpwssd, acc, a, b)

    def _call(self, emit: Emitter, name: str, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """From LLVM 22 on the intrinsics take bytes and words as such, before as 32-bit lanes."""
        if LLVM_VERSION < 22:
            a, b = emit.builder.bitcast(a, acc.type), emit.builder.bitcast(b, acc.type)
        return emit.call(name, acc.type, acc, a, b)


class AvxVnni(VnniDots, Avx2):
    """AVX2 and the 256-bit vpdpbusd, of AVX-VNNI or of AVX-512 VNNI with vector lengths."""

    vpdpbusd = "llvm.x86.avx512.vpdpbusd.256"
    vpdpwssd = "llvm.x86.avx512.vpdpwssd.256"

"""The ops whose instructions differ between ISAs, in plain LLVM: every ISA starts from these.

Everything else in `simd/` is one LLVM vector instruction or intrinsic and is written once, beside its op.
"""

from __future__ import annotations

from llvmlite import ir

from edgellm.simd.operation import Emitter, constant

_I16 = ir.IntType(16)
_I32 = ir.IntType(32)


class Generic:
    """Lowerings by LLVM vector instructions alone, for any processor and any width."""

    def dot_u8i8(self, emit: Emitter, acc: ir.Value, u: ir.Value, s: ir.Value) -> ir.Value:
        """acc + the products of four neighbouring bytes, byte by byte in 32-bit lanes."""
        return self._dot(emit, acc, u, s, u_is_signed=False)

    def dot_u7i8(self, emit: Emitter, acc: ir.Value, u: ir.Value, s: ir.Value) -> ir.Value:
        return self.dot_u8i8(emit, acc, u, s)

    def dot_i8i8(self, emit: Emitter, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._dot(emit, acc, a, b, u_is_signed=True)

    def _dot(self, emit: Emitter, acc: ir.Value, u: ir.Value, s: ir.Value, u_is_signed: bool) -> ir.Value:
        builder = emit.builder
        u, s = builder.bitcast(u, acc.type), builder.bitcast(s, acc.type)
        top = constant(acc.type, 24)
        for byte in range(4):
            lift = constant(acc.type, 24 - 8 * byte)
            extend = builder.ashr if u_is_signed else builder.lshr
            left = extend(builder.shl(u, lift), top)
            right = builder.ashr(builder.shl(s, lift), top)
            acc = builder.add(acc, builder.mul(left, right))
        return acc

    def dot_i16i16(self, emit: Emitter, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """acc + the products of two neighbouring words, the lower ones and the upper ones in 32-bit lanes."""
        builder = emit.builder
        a, b = builder.bitcast(a, acc.type), builder.bitcast(b, acc.type)
        sixteen = constant(acc.type, 16)
        lower = [builder.ashr(builder.shl(value, sixteen), sixteen) for value in (a, b)]
        upper = [builder.ashr(value, sixteen) for value in (a, b)]
        return builder.add(builder.add(acc, builder.mul(*lower)), builder.mul(*upper))

    def table_lookup(self, emit: Emitter, table: ir.Value, index: ir.Value) -> ir.Value:
        """LLVM has no shuffle by variable lanes: one compare and select for each of the 16 entries of a block."""
        builder = emit.builder
        lanes = table.type.count
        found = constant(table.type, 0)
        for entry in range(16):
            spread = emit.shuffle(table, table, [lane - lane % 16 + entry for lane in range(lanes)])
            hit = builder.icmp_unsigned("==", index, constant(index.type, entry))
            found = builder.select(hit, spread, found)
        return found

    def half_to_float(self, emit: Emitter, bits: ir.Value) -> ir.Value:
        """<N x i16> to <N x float> with integers: a product moves the exponent, exact for subnormals too."""
        builder = emit.builder
        wide = ir.VectorType(_I32, bits.type.count)
        single = ir.VectorType(ir.FloatType(), bits.type.count)
        word = builder.zext(bits, wide)
        magnitude = builder.shl(builder.and_(word, constant(wide, 0x7FFF)), constant(wide, 13))
        moved = builder.fmul(builder.bitcast(magnitude, single), constant(single, 2.0**112))
        special = builder.icmp_unsigned(">=", magnitude, constant(wide, 0x7C00 << 13))
        infinite = builder.or_(magnitude, constant(wide, 0x7F800000))
        number = builder.select(special, infinite, builder.bitcast(moved, wide))
        sign = builder.shl(builder.and_(word, constant(wide, 0x8000)), constant(wide, 16))
        return builder.bitcast(builder.or_(number, sign), single)

    def float_to_half(self, emit: Emitter, value: ir.Value) -> ir.Value:
        """<N x float> to <N x i16>, to nearest even, with integers."""
        builder = emit.builder
        wide = ir.VectorType(_I32, value.type.count)
        word = builder.bitcast(value, wide)
        sign = builder.and_(word, constant(wide, -(2**31)))
        magnitude = builder.xor(word, sign)
        # Subnormal halves: adding 0.5 leaves the float adder to round at the half's last place.
        small = builder.fadd(builder.bitcast(magnitude, value.type), constant(value.type, 0.5))
        small = builder.sub(builder.bitcast(small, wide), constant(wide, 0x3F000000))
        odd = builder.and_(builder.lshr(magnitude, constant(wide, 13)), constant(wide, 1))
        moved = builder.add(magnitude, constant(wide, 0xFFF - (112 << 23)))
        normal = builder.lshr(builder.add(moved, odd), constant(wide, 13))
        not_a_number = builder.icmp_unsigned(">", magnitude, constant(wide, 0x7F800000))
        # The payload's high bits stay, as in the processors' own conversions.
        payload = builder.and_(builder.lshr(magnitude, constant(wide, 13)), constant(wide, 0x3FF))
        quiet = builder.or_(payload, constant(wide, 0x7E00))
        result = builder.select(builder.icmp_unsigned("<", magnitude, constant(wide, 113 << 23)), small, normal)
        too_large = builder.icmp_unsigned(">=", magnitude, constant(wide, (127 + 16) << 23))
        result = builder.select(too_large, constant(wide, 0x7C00), result)
        result = builder.select(not_a_number, quiet, result)
        result = builder.or_(result, builder.lshr(sign, constant(wide, 16)))
        return builder.trunc(result, ir.VectorType(_I16, value.type.count))

    def pause(self, emit: Emitter) -> None:
        """Nothing that every processor has."""

    def ticks(self, emit: Emitter) -> ir.Value:
        """No counter that every processor lets a program read."""
        return ir.Constant(ir.IntType(64), 0)


class HalfHardware(Generic):
    """Processors that convert half precision themselves."""

    def half_to_float(self, emit: Emitter, bits: ir.Value) -> ir.Value:
        lanes = bits.type.count
        halves = emit.builder.bitcast(bits, ir.VectorType(ir.HalfType(), lanes))
        return emit.builder.fpext(halves, ir.VectorType(ir.FloatType(), lanes))

    def float_to_half(self, emit: Emitter, value: ir.Value) -> ir.Value:
        lanes = value.type.count
        halves = emit.builder.fptrunc(value, ir.VectorType(ir.HalfType(), lanes))
        return emit.builder.bitcast(halves, ir.VectorType(_I16, lanes))

"""Bits and bytes: integer dot products, byte permutations, and codes of 4 and 8 bits as 16-bit floats.

Dequantization plants a code in the mantissa of a float whose ulp is 1 and subtracts that float: exact. The nibbles of a
word come out in the pairs (0, 4), (1, 5), (2, 6), (3, 7) and the bytes in the pairs (0, 2), (1, 3); packers place codes
accordingly. Kim et al., "Who Says Elephants Can't Run" (2022), section on int4 dequantization.
"""

from __future__ import annotations

from edgellm.backends.cuda.ptx.asm import asm
from edgellm.backends.cuda.ptx.function import device
from edgellm.backends.cuda.ptx.half import fma_bf16x2, fma_f16x2, sub_f16x2
from edgellm.backends.cuda.ptx.types import f32, i32, u32

_NIBBLES = u32(0x000F000F)
_HIGH_NIBBLES = u32(0x00F000F0)
_F16_1024 = u32(0x64006400)  # ulp 1
_F16_1032 = u32(0x64086408)
_F16_SIXTEENTH = u32(0x2C002C00)
_F16_MINUS_64 = u32(0xD400D400)
_F16_MINUS_72 = u32(0xD480D480)
_BF16_128 = u32(0x43004300)  # ulp 1
_BF16_256 = u32(0x43804380)
_BF16_ONE = u32(0x3F803F80)
_BF16_MINUS_ONE = u32(0xBF80BF80)
_BF16_MINUS_128 = u32(0xC300C300)
_BF16_MINUS_136 = u32(0xC308C308)


@asm("dp4a.s32.s32 $0, $1, $2, $3;")
def dp4a_ss(a: u32, b: u32, c: i32) -> i32:
    """c + the products of four signed bytes with four signed bytes, wrapping."""


@asm("dp4a.u32.s32 $0, $1, $2, $3;")
def dp4a_us(a: u32, b: u32, c: i32) -> i32:
    """c + the products of four unsigned bytes with four signed bytes, wrapping."""


@asm("prmt.b32 $0, $1, $2, $3;")
def prmt(a: u32, b: u32, selector: u32) -> u32:
    """Four bytes chosen among a's (0-3) and b's (4-7), one by each nibble of the selector; 8 added: its sign spread."""


@asm("lop3.b32 $0, $1, $2, $3, 0xea;")
def and_or(a: u32, b: u32, c: u32) -> u32:
    """(a & b) | c."""


@asm("lop3.b32 $0, $1, $2, $3, 0x6a;")
def and_xor(a: u32, b: u32, c: u32) -> u32:
    """(a & b) ^ c."""


@asm("mul.hi.u32 $0, $1, $2;")
def mul_hi_u32(a: u32, b: u32) -> u32:
    """The upper 32 bits of a * b."""


@asm("shf.l.wrap.b32 $0, $1, $2, $3;")
def funnel_left(low: u32, high: u32, count: u32) -> u32:
    """The upper word of the 64 bits (high, low) shifted left by count % 32."""


@asm("mov.b32 $0, $1;")
def bits_of_f32(value: f32) -> u32:
    """The bits of a float."""


@asm("mov.b32 $0, $1;")
def f32_of_bits(bits: u32) -> f32:
    """The float of these bits."""


@device
def dequant_u4_f16(word):
    """Eight 4-bit codes as float16, 0 to 15: four pairs, nibbles (0, 4), (1, 5), (2, 6), (3, 7)."""
    upper = u32(word >> u32(8))
    return (
        sub_f16x2(and_or(word, _NIBBLES, _F16_1024), _F16_1024),
        fma_f16x2(and_or(word, _HIGH_NIBBLES, _F16_1024), _F16_SIXTEENTH, _F16_MINUS_64),
        sub_f16x2(and_or(upper, _NIBBLES, _F16_1024), _F16_1024),
        fma_f16x2(and_or(upper, _HIGH_NIBBLES, _F16_1024), _F16_SIXTEENTH, _F16_MINUS_64),
    )


@device
def dequant_s4_f16(word):
    """Eight 4-bit codes less 8 as float16, -8 to 7: pairs as `dequant_u4_f16`."""
    upper = u32(word >> u32(8))
    return (
        sub_f16x2(and_or(word, _NIBBLES, _F16_1024), _F16_1032),
        fma_f16x2(and_or(word, _HIGH_NIBBLES, _F16_1024), _F16_SIXTEENTH, _F16_MINUS_72),
        sub_f16x2(and_or(upper, _NIBBLES, _F16_1024), _F16_1032),
        fma_f16x2(and_or(upper, _HIGH_NIBBLES, _F16_1024), _F16_SIXTEENTH, _F16_MINUS_72),
    )


@device
def biased_u4_bf16(word):
    """Eight 4-bit codes plus 128 as bfloat16: pairs as `dequant_u4_f16`. The cheapest: whoever sums takes 128 off."""
    return (
        and_or(word, _NIBBLES, _BF16_128),
        and_or(u32(word >> u32(4)), _NIBBLES, _BF16_128),
        and_or(u32(word >> u32(8)), _NIBBLES, _BF16_128),
        and_or(u32(word >> u32(12)), _NIBBLES, _BF16_128),
    )


@device
def dequant_u4_bf16(word):
    """Eight 4-bit codes as bfloat16, 0 to 15: pairs as `dequant_u4_f16`."""
    a, b, c, d = biased_u4_bf16(word)
    return (
        fma_bf16x2(a, _BF16_ONE, _BF16_MINUS_128),
        fma_bf16x2(b, _BF16_ONE, _BF16_MINUS_128),
        fma_bf16x2(c, _BF16_ONE, _BF16_MINUS_128),
        fma_bf16x2(d, _BF16_ONE, _BF16_MINUS_128),
    )


@device
def dequant_s4_bf16(word):
    """Eight 4-bit codes less 8 as bfloat16, -8 to 7: pairs as `dequant_u4_f16`."""
    a, b, c, d = biased_u4_bf16(word)
    return (
        fma_bf16x2(a, _BF16_ONE, _BF16_MINUS_136),
        fma_bf16x2(b, _BF16_ONE, _BF16_MINUS_136),
        fma_bf16x2(c, _BF16_ONE, _BF16_MINUS_136),
        fma_bf16x2(d, _BF16_ONE, _BF16_MINUS_136),
    )


@device
def dequant_u8_f16(word):
    """Four bytes as float16, 0 to 255: two pairs, bytes (0, 2), (1, 3)."""
    return (
        sub_f16x2(prmt(word, _F16_1024, u32(0x5250)), _F16_1024),
        sub_f16x2(prmt(word, _F16_1024, u32(0x5351)), _F16_1024),
    )


@device
def dequant_s8_bf16(word):
    """Four bytes less 128 as bfloat16, -128 to 127: two pairs, bytes (0, 2), (1, 3).

    bfloat16 has seven bits of mantissa: the low seven bits of a byte go there, above 128.0, and the byte's top bit
    chooses whether 128.0 (with 128 taken off that is the code) or 256.0 is subtracted.
    """
    upper = u32(word >> u32(8))
    return (
        fma_bf16x2(
            and_xor(word, u32(0x00800080), _BF16_256), _BF16_MINUS_ONE, and_or(word, u32(0x007F007F), _BF16_128)
        ),
        fma_bf16x2(
            and_xor(upper, u32(0x00800080), _BF16_256), _BF16_MINUS_ONE, and_or(upper, u32(0x007F007F), _BF16_128)
        ),
    )

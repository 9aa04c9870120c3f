"""Packed weights as operands of the tensor cores: what a lane makes of the words that one 128-bit load gives it.

The words of a lane are those of `layout.py`. In bfloat16, for decode, codes come out with a constant added that whoever
sums takes off again together with the zero point (`CODE_BASE`); in float16, for prefill, exactly.

Instructions a weight, the matrix product not counted: 4 bits 7/8 (three shifts, four `lop3` for eight weights) in
bfloat16 and 10/8 in float16; 8 bits 14/8 (`dequant_s8_bf16`); 16 bits 4, which is no more a byte.
"""

from __future__ import annotations

from edgellm.backends.cuda.ptx import (
    and_or,
    dequant_s8_bf16,
    device,
    funnel_left,
    mma_m16n8k16_bf16,
    prmt,
    split_bf16x2,
    sub_f16x2,
    u32,
    unpack_f16x2,
)

#: What is added to codes of 4 and 8 bits in bfloat16. A nibble in the upper bits of the mantissa of 16.0 is 16 + code:
#: sums of 24 +- 8 lose a fifth of what sums of 136 +- 8, the nibble in its lower bits, lose to rounding.
CODE_BASE = {4: 16, 8: -128}
#: 32-bit words of a lane that hold a step of 128 inputs.
STEP_WORDS = {4: 8, 8: 16, 16: 32}

_NIBBLES = u32(0x00780078)
_BF16_16 = u32(0x41804180)
_LOW_NIBBLES = u32(0x000F000F)
_HIGH_NIBBLES = u32(0x00F000F0)
_F16_1024 = u32(0x64006400)
_F16_64 = u32(0x54005400)


@device
def codes4_bf16(word):
    """Eight 4-bit codes plus 16 as bfloat16: the operands a0, a1, a2, a3 of a block."""
    return (
        and_or(word, _NIBBLES, _BF16_16),
        and_or(u32(word >> u32(4)), _NIBBLES, _BF16_16),
        and_or(u32(word >> u32(8)), _NIBBLES, _BF16_16),
        and_or(funnel_left(word, word, u32(20)), _NIBBLES, _BF16_16),
    )


@device
def codes4_f16(word, lower_zero, upper_zero):
    """Eight 4-bit codes less their zero points as float16: a0, a1, a2, a3.

    Args:
        lower_zero: 1024 + the zero point of row g, twice, in float16.
        upper_zero: 64 + the zero point of row g + 8, twice.
    """
    low = funnel_left(word, word, u32(29))
    high = funnel_left(word, word, u32(21))
    return (
        sub_f16x2(and_or(low, _LOW_NIBBLES, _F16_1024), lower_zero),
        sub_f16x2(and_or(low, _HIGH_NIBBLES, _F16_64), upper_zero),
        sub_f16x2(and_or(high, _LOW_NIBBLES, _F16_1024), lower_zero),
        sub_f16x2(and_or(high, _HIGH_NIBBLES, _F16_64), upper_zero),
    )


@device
def codes8_f16(lower, upper, lower_zero, upper_zero):
    """Eight 8-bit codes less their zero points as float16, of the words of row g and of row g + 8: a0, a1, a2, a3.

    Args:
        lower_zero, upper_zero: 1024 + the zero point of row g and of row g + 8, twice, in float16.
    """
    return (
        sub_f16x2(prmt(lower, _F16_1024, u32(0x5250)), lower_zero),
        sub_f16x2(prmt(upper, _F16_1024, u32(0x5250)), upper_zero),
        sub_f16x2(prmt(lower, _F16_1024, u32(0x5351)), lower_zero),
        sub_f16x2(prmt(upper, _F16_1024, u32(0x5351)), upper_zero),
    )


@device
def multiply(a, b, at, d, sets):
    """d += A B for each set of eight columns; b [sets * 4] holds two blocks, `at` (0 or 2) says which, d [sets * 4]."""
    for s in range(sets):
        o = u32(4 * s)
        d[o], d[o + u32(1)], d[o + u32(2)], d[o + u32(3)] = mma_m16n8k16_bf16(
            a[0],
            a[1],
            a[2],
            a[3],
            b[o + at],
            b[o + at + u32(1)],
            d[o],
            d[o + u32(1)],
            d[o + u32(2)],
            d[o + u32(3)],
        )


@device
def product4(q, block, b, at, d, sets):
    """One block of 16 inputs of 4-bit codes: see `multiply`."""
    multiply(codes4_bf16(q[block]), b, at, d, sets)


@device
def product8(q, block, b, at, d, sets):
    """One block of 8-bit codes."""
    a0, a2 = dequant_s8_bf16(q[u32(2) * block])
    a1, a3 = dequant_s8_bf16(q[u32(2) * block + u32(1)])
    multiply((a0, a1, a2, a3), b, at, d, sets)


@device
def product16(q, block, b, at, d, sets):
    """One block of float16, exactly: its 11 bits are those of two bfloat16."""
    first = u32(4) * block
    x0, y0 = unpack_f16x2(q[first])
    x1, y1 = unpack_f16x2(q[first + u32(1)])
    x2, y2 = unpack_f16x2(q[first + u32(2)])
    x3, y3 = unpack_f16x2(q[first + u32(3)])
    a0, r0 = split_bf16x2(x0, y0)
    a1, r1 = split_bf16x2(x1, y1)
    a2, r2 = split_bf16x2(x2, y2)
    a3, r3 = split_bf16x2(x3, y3)
    multiply((a0, a1, a2, a3), b, at, d, sets)
    multiply((r0, r1, r2, r3), b, at, d, sets)


#: The product of a block by the bits of its weights.
PRODUCTS = {4: product4, 8: product8, 16: product16}

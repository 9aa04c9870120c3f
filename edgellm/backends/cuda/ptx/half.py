"""Two float16 or two bfloat16 in a u32 (low half first), and single ones in a u16."""

from __future__ import annotations

from edgellm.backends.cuda.ptx.asm import asm
from edgellm.backends.cuda.ptx.function import device
from edgellm.backends.cuda.ptx.types import f32, u16, u32


@asm("add.rn.f16x2 $0, $1, $2;")
def add_f16x2(a: u32, b: u32) -> u32:
    """a + b of both halves."""


@asm("sub.rn.f16x2 $0, $1, $2;")
def sub_f16x2(a: u32, b: u32) -> u32:
    """a - b of both halves."""


@asm("mul.rn.f16x2 $0, $1, $2;")
def mul_f16x2(a: u32, b: u32) -> u32:
    """a * b of both halves."""


@asm("fma.rn.f16x2 $0, $1, $2, $3;")
def fma_f16x2(a: u32, b: u32, c: u32) -> u32:
    """a * b + c of both halves, each rounded once."""


@asm("fma.rn.bf16x2 $0, $1, $2, $3;", lowest=80)
def fma_bf16x2(a: u32, b: u32, c: u32) -> u32:
    """a * b + c of both bfloat16 halves, each rounded once. Sums and products of bfloat16 by themselves need sm_90."""


@asm("{ .reg .b16 l,h; mov.b32 {l,h}, $2; cvt.f32.f16 $0, l; cvt.f32.f16 $1, h; }")
def unpack_f16x2(pair: u32) -> tuple[f32, f32]:
    """The float16 halves as float32, low first."""


@asm(
    "cvt.rn.f16x2.f32 $0, $2, $1;",
    lowest=80,
    older="{ .reg .b16 l,h; cvt.rn.f16.f32 l, $1; cvt.rn.f16.f32 h, $2; mov.b32 $0, {l,h}; }",
)
def pack_f16x2(low: f32, high: f32) -> u32:
    """Two floats as float16, rounded to nearest even; what is too large becomes infinite."""


@asm("{ .reg .b32 t; shl.b32 t, $2, 16; mov.b32 $0, t; and.b32 t, $2, 0xffff0000; mov.b32 $1, t; }")
def unpack_bf16x2(pair: u32) -> tuple[f32, f32]:
    """The bfloat16 halves as float32, low first; exact."""


@asm("cvt.rn.bf16x2.f32 $0, $2, $1;", lowest=80)
def pack_bf16x2(low: f32, high: f32) -> u32:
    """Two floats as bfloat16, rounded to nearest even."""


@asm("{ .reg .b16 h; mov.b16 h, $1; cvt.f32.f16 $0, h; }")
def f16_to_f32(half: u16) -> f32:
    """One float16 as float32."""


@asm("{ .reg .b16 h; cvt.rn.f16.f32 h, $1; mov.b16 $0, h; }")
def f32_to_f16(value: f32) -> u16:
    """One float as float16, rounded to nearest even."""


@device
def split_bf16x2(low, high):
    """Two floats as bfloat16 pairs (first, second): first + second is the float to 16 bits of mantissa or more."""
    first = pack_bf16x2(low, high)
    a, b = unpack_bf16x2(first)
    return first, pack_bf16x2(low - a, high - b)

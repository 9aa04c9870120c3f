"""Matrix products of a warp on the tensor cores: D [16, 8] = A [16, k] B [k, 8] + C, in registers over the lanes.

With g = lane / 4 and t = lane % 4 a lane holds
    C, D    c0, c1: row g, columns 2t, 2t + 1;  c2, c3: the same of row g + 8
    A, 16 bits a register pair of k  a0: row g, k 2t, 2t + 1;  a1: row g + 8;  a2, a3: the same at k + 8 (k = 16)
    B, 16 bits                       b0: k 2t, 2t + 1 of column g;  b1: at k + 8 (k = 16)
    A, B of 8 bits                   four k a register: 4t .. 4t + 3, and + 16 in place of + 8
PTX ISA, "Matrix multiply-accumulate operation using mma instruction".
"""

from __future__ import annotations

from edgellm.backends.cuda.ptx.asm import asm
from edgellm.backends.cuda.ptx.types import f32, i32, u32


@asm(
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
    lowest=80,
)
def mma_m16n8k16_f16(
    a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32, c0: f32, c1: f32, c2: f32, c3: f32
) -> tuple[f32, f32, f32, f32]:
    """float16 operands, float32 sums."""


@asm(
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
    lowest=80,
)
def mma_m16n8k16_bf16(
    a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32, c0: f32, c1: f32, c2: f32, c3: f32
) -> tuple[f32, f32, f32, f32]:
    """bfloat16 operands, float32 sums."""


@asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {$0,$1,$2,$3}, {$4,$5}, {$6}, {$7,$8,$9,$10};", lowest=75)
def mma_m16n8k8_f16(a0: u32, a1: u32, b0: u32, c0: f32, c1: f32, c2: f32, c3: f32) -> tuple[f32, f32, f32, f32]:
    """float16 operands, float32 sums, k = 8: what Turing has."""


@asm(
    "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
    lowest=80,
)
def mma_m16n8k32_s8(
    a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32, c0: i32, c1: i32, c2: i32, c3: i32
) -> tuple[i32, i32, i32, i32]:
    """int8 operands, int32 sums, wrapping."""


@asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {$0,$1}, {$2}, {$3}, {$4,$5};", lowest=75)
def mma_m8n8k16_s8(a0: u32, b0: u32, c0: i32, c1: i32) -> tuple[i32, i32]:
    """int8 operands, int32 sums, D [8, 8] = A [8, 16] B [16, 8] + C: what Turing has.

    a0: row g, k 4t .. 4t + 3; b0: the same k of column g; c0, c1: row g, columns 2t, 2t + 1.
    """

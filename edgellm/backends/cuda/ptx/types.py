"""Scalar types of the ops, under short names that also convert (`u32(x)`), and numba-cuda's import made to work.

numba widens u32 + u32 to u64, and an index of i64 costs code for negative numbers: indices are u32, and where 32-bit
arithmetic matters the sum is cast back, `u32(a + b)`. float16 and bfloat16 travel as u16, or two in a u32, low half
first: numba's own half types need a driver to compile.
"""

from __future__ import annotations

import numpy as np

if not hasattr(np, "row_stack"):  # NumPy 2.5 dropped the alias; numba-cuda up to 0.30 still names it at import
    np.row_stack = np.vstack

from llvmlite import ir
from numba.cuda import types

u8, u16, u32, u64 = types.uint8, types.uint16, types.uint32, types.uint64
i8, i32, i64, f32 = types.int8, types.int32, types.int64, types.float32

BY_NAME = {"u8": u8, "u16": u16, "u32": u32, "u64": u64, "i8": i8, "i32": i32, "i64": i64, "f32": f32}
LLVM = {u16: ir.IntType(16), u32: ir.IntType(32), i32: ir.IntType(32), u64: ir.IntType(64), f32: ir.FloatType()}
CONSTRAINT = {u16: "h", u32: "r", i32: "r", u64: "l", f32: "f"}  # register class of an inline-assembly operand

"""Imports every file that declares opcodes."""

from __future__ import annotations

from tools.ptx_emulator import (
    op_async,
    op_atomic,
    op_bits,
    op_convert,
    op_float,
    op_integer,
    op_memory,
    op_mma,
    op_move,
    op_warp,
)

__all__ = [
    "op_async",
    "op_atomic",
    "op_bits",
    "op_convert",
    "op_float",
    "op_integer",
    "op_memory",
    "op_mma",
    "op_move",
    "op_warp",
]

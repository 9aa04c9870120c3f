"""PTX's fundamental types and how registers of them lie in numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.ptx_emulator.errors import EmulatorError


@dataclass(frozen=True)
class PtxType:
    """One type: `kind` is s, u, b, f (IEEE), h (packed or brain halves, held as bits) or p (predicate)."""

    name: str
    kind: str
    bits: int
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        return self.bits // 8


UNSIGNED = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16), 32: np.dtype(np.uint32), 64: np.dtype(np.uint64)}
SIGNED = {8: np.dtype(np.int8), 16: np.dtype(np.int16), 32: np.dtype(np.int32), 64: np.dtype(np.int64)}
FLOATS = {16: np.dtype(np.float16), 32: np.dtype(np.float32), 64: np.dtype(np.float64)}


def _table() -> dict[str, PtxType]:
    types = {}
    for bits in (8, 16, 32, 64):
        types[f"s{bits}"] = PtxType(f"s{bits}", "s", bits, SIGNED[bits])
        types[f"u{bits}"] = PtxType(f"u{bits}", "u", bits, UNSIGNED[bits])
        types[f"b{bits}"] = PtxType(f"b{bits}", "b", bits, UNSIGNED[bits])
        if bits > 8:
            types[f"f{bits}"] = PtxType(f"f{bits}", "f", bits, FLOATS[bits])
    types["bf16"] = PtxType("bf16", "h", 16, UNSIGNED[16])
    types["f16x2"] = PtxType("f16x2", "h", 32, UNSIGNED[32])
    types["bf16x2"] = PtxType("bf16x2", "h", 32, UNSIGNED[32])
    types["tf32"] = PtxType("tf32", "h", 32, UNSIGNED[32])
    types["pred"] = PtxType("pred", "p", 1, np.dtype(np.bool_))
    return types


TYPES = _table()


def ptx_type(name: str, line: int = 0) -> PtxType:
    """The type called `name` (without its dot); EmulatorError for one that is not known."""
    if name not in TYPES:
        raise EmulatorError(f"unknown type .{name}", line)
    return TYPES[name]


def widened(of: PtxType, bits: int) -> PtxType:
    """The type of the same kind with `bits` bits: what a narrower value fills in a wider register."""
    kind = of.kind if of.kind in "sf" else "b"
    return TYPES[f"{kind}{bits}"]

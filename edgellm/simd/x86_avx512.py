"""AVX-512 with VNNI: 512-bit vectors, vpdpbusd with a broadcast from memory in the instruction."""

from __future__ import annotations

from llvmlite import ir

from edgellm.simd.generic import HalfHardware
from edgellm.simd.operation import Emitter
from edgellm.simd.x86_avx2 import VnniDots, X86Waiting


class Avx512Vnni(VnniDots, X86Waiting, HalfHardware):
    """F, BW, DQ, VL and VNNI: Ice Lake and Zen 4 on."""

    vpdpbusd = "llvm.x86.avx512.vpdpbusd.512"
    vpdpwssd = "llvm.x86.avx512.vpdpwssd.512"

    def table_lookup(self, emit: Emitter, table: ir.Value, index: ir.Value) -> ir.Value:
        return emit.call("llvm.x86.avx512.pshuf.b.512", table.type, table, index)

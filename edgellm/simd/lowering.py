"""The lowerings of the chosen ISA."""

from __future__ import annotations

from edgellm.simd.generic import Generic
from edgellm.simd.neon import Neon, NeonDotprod
from edgellm.simd.target import TARGET
from edgellm.simd.x86_avx2 import X86, Avx2, AvxVnni
from edgellm.simd.x86_avx512 import Avx512Vnni

_BY_ISA = {
    "avx512vnni": Avx512Vnni,
    "avxvnni": AvxVnni,
    "avx2": Avx2,
    "neon-dotprod": NeonDotprod,
    "neon": Neon,
    "generic": X86 if TARGET.arch == "x86" else Generic,
}

LOWERING = _BY_ISA[TARGET.isa]()

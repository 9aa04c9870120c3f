"""Which vector instructions the kernels use: found once, by asking the compiler that will compile them.

    ISA           vector   int8 dot product
    avx512vnni    512 bit  vpdpbusd zmm
    avxvnni       256 bit  vpdpbusd ymm
    avx2          256 bit  vpmaddubsw + vpmaddwd
    neon-dotprod  128 bit  sdot
    neon          128 bit  smull + sadalp
    generic       128 bit  plain LLVM vectors

A feature list tells what a processor has, not what LLVM makes of it under `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES`,
and a processor's name alone has no list at all. So a few lines of IR are compiled for exactly the processor that numba
compiles for, and the instructions that come out decide. (LLVM's list of the host leaves out registers that the system
does not save.)

`EDGELLM_ISA` forces one of those that this machine can run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import llvmlite.binding as llvm

from edgellm.errors import UsageError
from edgellm.simd.settings import processor

#: Bytes in a vector, best first.
VECTOR_BYTES = {"avx512vnni": 64, "avxvnni": 32, "avx2": 32, "neon-dotprod": 16, "neon": 16, "generic": 16}

_DOT = """
declare i32 @llvm.vector.reduce.add.v{n}i32(<{n} x i32>)
define i32 @dot{n}(ptr %a, ptr %b, i32 %c) {{
  %x = load <{n} x i8>, ptr %a
  %y = load <{n} x i8>, ptr %b
  %p = {extend} <{n} x i8> %x to <{n} x i32>
  %q = sext <{n} x i8> %y to <{n} x i32>
  %m = mul <{n} x i32> %p, %q
  %r = call i32 @llvm.vector.reduce.add.v{n}i32(<{n} x i32> %m)
  %s = add i32 %r, %c
  ret i32 %s
}}
"""
# 256-bit integers are AVX2, the fused multiply-add and the half conversion came with the same processors.
_AVX2 = """
declare <8 x float> @llvm.fma.v8f32(<8 x float>, <8 x float>, <8 x float>)
define <8 x float> @avx2(<8 x half> %a, <8 x i32> %b, <8 x i32> %c) {
  %x = fpext <8 x half> %a to <8 x float>
  %y = add <8 x i32> %b, %c
  %z = sitofp <8 x i32> %y to <8 x float>
  %r = call <8 x float> @llvm.fma.v8f32(<8 x float> %x, <8 x float> %z, <8 x float> %x)
  ret <8 x float> %r
}
"""
_FMA = """
declare float @llvm.fma.f32(float, float, float)
define float @fused(float %a, float %b, float %c) {
  %r = call float @llvm.fma.f32(float %a, float %b, float %c)
  ret float %r
}
"""
_PROBES = {
    "x86": _FMA + _AVX2 + _DOT.format(n=32, extend="zext") + _DOT.format(n=64, extend="zext"),
    "aarch64": _FMA + _DOT.format(n=16, extend="sext"),
}


@dataclass(frozen=True)
class Target:
    """What the kernels are compiled for.

    Attributes:
        isa: one of `VECTOR_BYTES`.
        vector_bytes: width of a vector.
        arch: "x86", "aarch64" or "other".
        has_fma: `fma` rounds once; where it is false, it rounds after the product too.
        cpu: LLVM's name of the processor.
        available: every ISA this machine can run, best first.
    """

    isa: str
    vector_bytes: int
    arch: str
    has_fma: bool
    cpu: str
    available: tuple[str, ...]


def architecture(triple: str) -> str:
    """ "x86" (64-bit), "aarch64" or "other", of an LLVM target triple."""
    name = triple.split("-")[0]
    return {"x86_64": "x86", "amd64": "x86", "aarch64": "aarch64", "arm64": "aarch64"}.get(name, "other")


def _instructions(ir: str, triple: str, cpu: str, features: str) -> dict[str, str]:
    """The code of each function. All in one module: to compile four took 20 ms of every start, in one they take 7."""
    module = llvm.parse_assembly(ir)
    module.triple = triple
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=2)
    names = "|".join(function.name for function in module.functions if not function.is_declaration)
    _, *parts = re.split(rf"^_?({names}):", machine.emit_assembly(module), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def probe(triple: str, cpu: str, features: str) -> tuple[tuple[str, ...], bool]:
    """The ISAs that code for this processor may use, best first, and whether it has a fused multiply-add.

    The targets of `triple` must have been initialised in LLVM.
    """

    arch = architecture(triple)
    code = _instructions(_PROBES.get(arch, _FMA), triple, cpu, features)

    def emits(function: str, *patterns: str) -> bool:
        return all(re.search(pattern, code[function]) for pattern in patterns)

    found = ["generic"]
    if arch == "x86" and emits("avx2", "vpaddd.*%ymm", "vcvtph2ps.*%ymm", "vfmadd"):
        found.append("avx2")
        if emits("dot32", "vpdpbusd.*%ymm"):
            found.append("avxvnni")
        if emits("dot64", "vpdpbusd.*%zmm"):
            found.append("avx512vnni")
    if arch == "aarch64":
        found.append("neon")
        if emits("dot16", r"\bsdot\b"):
            found.append("neon-dotprod")
    return tuple(reversed(found)), emits("fused", "vfmadd|fmadd")


def choose(available: tuple[str, ...], environ: Mapping[str, str]) -> str:
    """The first of `available`, or the one that `EDGELLM_ISA` names.

    Raises:
        UsageError: it names none, or one that this machine cannot run.
    """
    forced = environ.get("EDGELLM_ISA", "").strip().lower()
    if not forced:
        return available[0]
    if forced not in available:
        what = "this machine cannot run that instruction set" if forced in VECTOR_BYTES else "no such instruction set"
        raise UsageError(what, key="EDGELLM_ISA", found=forced, allowed=", ".join(available))
    return forced


def detect(environ: Mapping[str, str]) -> Target:
    """The target of this process: what numba compiles for, and `EDGELLM_ISA` of `environ`."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple, cpu, features = processor()
    available, has_fma = probe(triple, cpu, features)
    isa = choose(available, environ)
    return Target(isa, VECTOR_BYTES[isa], architecture(triple), has_fma, cpu, available)


TARGET = detect(os.environ)

#: Lanes in a native vector of each element type.
F32_LANES = I32_LANES = TARGET.vector_bytes // 4
I16_LANES = TARGET.vector_bytes // 2
I8_LANES = U8_LANES = TARGET.vector_bytes

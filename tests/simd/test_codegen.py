"""The instructions that come out: for this machine's ISA from numba, for ARM from the lowerings alone."""

from __future__ import annotations

import re

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from numba import config, njit

from edgellm.simd import (
    F32_LANES,
    TARGET,
    U8_LANES,
    broadcast_f32,
    broadcast_i8x4,
    convert_f32,
    dot_u7i8,
    fma,
    high_nibbles,
    indices,
    load_f16,
    load_u8,
    low_nibbles,
    store,
    tile,
    zero_f32,
    zero_i32,
)
from edgellm.simd.neon import Neon, NeonDotprod
from edgellm.simd.operation import Emitter

jitted = pytest.mark.skipif(bool(config.DISABLE_JIT or config.BOUNDSCHECK), reason="not the code that kernels run")
on_avx512 = pytest.mark.skipif(TARGET.isa != "avx512vnni", reason="looks for AVX-512 instructions")
STEPS, GROUPS, TOKENS = 16, 2, 12


@njit(nogil=True)
def gemv(weights, scales, x, x_scales, y, groups, steps):
    """4-bit rows, as many as lanes, against one quantized row of activations."""
    total = zero_f32()
    for g in range(groups):
        low, high = zero_i32(), zero_i32()
        for s in range(steps):
            at = g * steps + s
            w = load_u8(weights, at * U8_LANES)
            low = dot_u7i8(low, low_nibbles(w), broadcast_i8x4(x, at * 8))
            high = dot_u7i8(high, high_nibbles(w), broadcast_i8x4(x, at * 8 + 4))
        scale = load_f16(scales, g * F32_LANES) * broadcast_f32(x_scales, g)
        total = fma(convert_f32(low + high), scale, total)
    store(y, 0, total)


@njit(nogil=True)
def gemm(weights, scales, x, x_scales, y, groups, steps):
    """The same against a tile of `TOKENS` rows."""
    total = tile(zero_f32(), TOKENS)
    for g in range(groups):
        acc = tile(zero_i32(), TOKENS)
        for s in range(steps):
            at = g * steps + s
            w = load_u8(weights, at * U8_LANES)
            acc = dot_u7i8(acc, low_nibbles(w), broadcast_i8x4(x, indices(at * 8 * TOKENS, 4, TOKENS)))
            acc = dot_u7i8(acc, high_nibbles(w), broadcast_i8x4(x, indices((at * 8 + 4) * TOKENS, 4, TOKENS)))
        scale = load_f16(scales, g * F32_LANES)
        total = fma(convert_f32(acc) * broadcast_f32(x_scales, indices(g * TOKENS, 1, TOKENS)), scale, total)
    store(y, indices(0, F32_LANES, TOKENS), total)


def inner_loop(kernel, tokens: int) -> list[str]:
    """Instructions of the innermost loop, and the tokens' result checked against NumPy."""
    rng = np.random.default_rng(0)
    inputs = GROUPS * STEPS * 8
    codes, x = rng.integers(0, 16, (F32_LANES, inputs)), rng.integers(-127, 128, (tokens, inputs))
    scales, x_scales = (
        rng.random((GROUPS, F32_LANES)).astype(np.float16),
        rng.random((GROUPS, tokens)).astype(np.float32),
    )
    quads = codes.reshape(F32_LANES, -1, 2, 4).transpose(1, 0, 2, 3)
    weights = (quads[:, :, 0] | quads[:, :, 1] << 4).astype(np.uint8).ravel()
    activations = x.reshape(tokens, -1, 4).transpose(1, 0, 2).astype(np.int8).ravel()
    y = np.empty(tokens * F32_LANES, np.float32)
    kernel(weights, scales.view(np.uint16).ravel(), activations, x_scales.ravel(), y, GROUPS, STEPS)
    sums = np.einsum("rgk,tgk->tgr", codes.reshape(F32_LANES, GROUPS, -1), x.reshape(tokens, GROUPS, -1))
    expected = (sums * scales.astype(np.float64) * x_scales.T[:, :, None]).sum(1)
    np.testing.assert_allclose(y.reshape(tokens, F32_LANES), expected, rtol=1e-5, atol=1e-2)
    (assembly,) = kernel.inspect_asm().values()
    lines = [line.split("#")[0].strip() for line in assembly.splitlines()]
    first = next(i for i, line in enumerate(lines) if re.match("vpdpbusd|vpmaddubsw|sdot|smull", line))
    start = max(i for i, line in enumerate(lines[:first]) if line.endswith(":"))
    end = next(i for i, line in enumerate(lines) if i > first and line.startswith(("j", "b.", "cbn", "tbn")))
    return [line for line in lines[start + 1 : end + 1] if line and not line.startswith(".")]


@jitted
@pytest.mark.skipif(TARGET.isa == "generic", reason="no instruction to look for")
@pytest.mark.parametrize(("kernel", "tokens"), [(gemv, 1), (gemm, TOKENS)], ids=["gemv", "gemm"])
def test_four_bit_products_run_in_registers(kernel, tokens: int) -> None:
    loop = inner_loop(kernel, tokens)
    assert loop
    on_stack = [line for line in loop if "(%rsp)" in line or "[sp" in line]
    roomy = ("avx512vnni", "neon-dotprod", "neon")  # 32 registers; AVX2 has 16, where a single token fits
    fits = TARGET.isa in roomy or tokens == 1
    assert not (fits and on_stack)


@jitted
@on_avx512
@pytest.mark.parametrize(("kernel", "tokens"), [(gemv, 1), (gemm, TOKENS)], ids=["gemv", "gemm"])
def test_the_loop_is_load_and_shift_and_vpdpbusd(kernel, tokens: int) -> None:
    loop = inner_loop(kernel, tokens)
    dots = [line for line in loop if line.startswith("vpdpbusd")]
    assert dots
    assert all("{1to16}" in line and "%zmm" in line for line in dots)
    vectors = {line.split()[0] for line in loop if "mm" in line}
    assert vectors <= {"vpdpbusd", "vmovdqu64", "vmovdqa64", "vpandq", "vpandd", "vpsrld", "vpsrlw"}
    words = sum(line.startswith("vmovdqu64") for line in loop)
    assert len(dots) == 2 * tokens * words
    assert sum(line.startswith(("vpand", "vpsr")) for line in loop) == 3 * words
    assert not any("(%rsp)" in line for line in loop)


def arm_assembly(lowering, op: str, cpu: str) -> str:
    """AArch64 code of acc + four products of bytes, of a table look-up, of waiting or of a conversion."""
    words, octets = ir.VectorType(ir.IntType(32), 4), ir.VectorType(ir.IntType(8), 16)
    halves = ir.VectorType(ir.IntType(16), 8)
    kinds = {
        "dot_u7i8": (words, [words, octets, octets]),
        "dot_u8i8": (words, [words, octets, octets]),
        "dot_i8i8": (words, [words, octets, octets]),
        "dot_i16i16": (words, [words, halves, halves]),
        "table_lookup": (octets, [octets, octets]),
        "half_to_float": (ir.VectorType(ir.FloatType(), 4), [ir.VectorType(ir.IntType(16), 4)]),
        "float_to_half": (ir.VectorType(ir.IntType(16), 4), [ir.VectorType(ir.FloatType(), 4)]),
        "pause": (ir.VoidType(), []),
        "ticks": (ir.IntType(64), []),
    }
    result, parameters = kinds[op]
    module = ir.Module()
    module.triple = "aarch64-unknown-linux-gnu"
    function = ir.Function(module, ir.FunctionType(result, parameters), "op")
    builder = ir.IRBuilder(function.append_basic_block())
    value = getattr(lowering, op)(Emitter(None, builder, (), None), *function.args)
    builder.ret_void() if value is None else builder.ret(value)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(cpu=cpu, opt=3)
    assembly = machine.emit_assembly(llvm.parse_assembly(str(module)))
    body = assembly.split("op:")[1].split(".Lfunc_end")[0].splitlines()
    return " ".join(line.split()[0] for line in body if line.startswith("\t") and not line.startswith("\t."))


@pytest.mark.parametrize(
    ("op", "instructions"),
    [
        ("dot_u7i8", "sdot ret"),
        ("dot_i8i8", "sdot ret"),
        ("dot_u8i8", "movi movi eor sdot sdot sdot ret"),
        ("table_lookup", "tbl ret"),
        ("half_to_float", "fcvtl ret"),
        ("float_to_half", "fcvtn ret"),
        ("pause", "isb ret"),
        ("ticks", "mrs ret"),
    ],
)
def test_arm_with_dot_products(op: str, instructions: str) -> None:
    got = arm_assembly(NeonDotprod(), op, "cortex-a78ae")
    assert sorted(got.split()) == sorted(instructions.split())


@pytest.mark.parametrize(
    ("op", "instructions"),
    [
        ("dot_u7i8", "smull smull2 addp sadalp ret"),
        ("dot_i8i8", "smull smull2 saddlp saddlp addp add ret"),
        ("dot_i16i16", "smull smull2 addp add ret"),
    ],
)
def test_arm_without_dot_products(op: str, instructions: str) -> None:
    got = arm_assembly(Neon(), op, "cortex-a72")
    assert sorted(got.split()) == sorted(instructions.split())
    assert "sdot" not in arm_assembly(Neon(), "dot_u8i8", "cortex-a72")

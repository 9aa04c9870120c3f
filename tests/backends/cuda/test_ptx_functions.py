"""Functions made of several ops, compiled for each kind of target and run on the emulator, against plain arithmetic."""

from __future__ import annotations

import importlib
import math
from functools import cache
from typing import Any

import numpy as np
import pytest

from tools.ptx_emulator import Module

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles them, is not installed")
ptx = importlib.import_module("edgellm.backends.cuda.ptx")

_OF_FLOATS = {"exp": 1, "sigmoid": 1, "tanh": 1, "erf": 1, "warp_sum": 1, "warp_max": 1, "quad_sum": 1, "quad_max": 1}
_OF_WORDS = {"dequant_u4_f16": 4, "dequant_s4_f16": 4, "dequant_u8_f16": 2, "warp_sum_u32": 1}
_OF_WORDS_BF16 = {"biased_u4_bf16": 4, "dequant_u4_bf16": 4, "dequant_s4_bf16": 4, "dequant_s8_bf16": 2}


def _lines(names: dict[str, int], operand: str, take: str, place: int) -> list[str]:
    lines = []
    for name, count in names.items():
        results = [f"{name}_{k}" for k in range(count)]
        lines.append(f"{', '.join(results)} = ptx.{name}({operand})")
        lines += [f"found[at + ptx.u32({32 * (place + k)})] = {take.format(one)}" for k, one in enumerate(results)]
        place += count
    return lines


@cache
def compiled(capability: int) -> tuple[dict[str, int], str]:
    """Where each function's results begin, in rows of 32, and the kernel's PTX."""
    from edgellm.backends.cuda.kernels.declare import REGISTRY, kernel
    from edgellm.backends.cuda.ptx.compile import ptx_of

    words = {**_OF_WORDS, **(_OF_WORDS_BF16 if capability >= 80 else {})}
    body = _lines(_OF_FLOATS, "x", "ptx.bits_of_f32({})", 0) + _lines(words, "word", "{}", len(_OF_FLOATS))
    rows = len(_OF_FLOATS) + sum(words.values())
    if capability >= 80:
        body += ["first, second = ptx.split_bf16x2(x, x * ptx.f32(0.3))"]
        body += [f"found[at + ptx.u32({32 * rows})] = first", f"found[at + ptx.u32({32 * rows + 32})] = second"]
    name = f"functions_{capability}"
    source = f"def {name}(floats, words, found):\n    lane = ptx.u32(ptx.cuda.threadIdx.x)\n"
    source += "    block = ptx.u32(ptx.cuda.blockIdx.x)\n    x = floats[block * ptx.u32(32) + lane]\n"
    source += (
        f"    word = words[block * ptx.u32(32) + lane]\n    at = ptx.u32(block * ptx.u32({32 * rows + 64}) + lane)\n"
    )
    source += "".join(f"    {line}\n" for line in body)
    scope: dict[str, Any] = {"ptx": ptx}
    exec(source, scope)
    parameters = (("floats", "f32*"), ("words", "u32*"), ("found", "u32*"))
    made = kernel(name, parameters, threads=32, lowest=capability)(scope[name])
    del REGISTRY[name]
    starts, place = {"split_bf16x2": rows}, 0
    for function, count in {**_OF_FLOATS, **words}.items():
        starts[function], place = place, place + count
    return starts, ptx_of(made, capability)


@cache
def run(capability: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Floats and words given [blocks * 32], and by function the results, u32 [blocks, ..., 32]."""
    starts, text = compiled(capability)
    random = np.random.default_rng(3)
    edges = [0.0, 1e-6, -1e-6, 0.2, -0.2, 0.1999, 5.0, -5.0, 20.0, -20.0, 80.0, -80.0, -88.0, -1000.0, 30.0, 1.0]
    floats = np.concatenate([edges, random.uniform(-12, 12, 112)]).astype(np.float32)
    words = random.integers(0, 2**32, 128, dtype=np.uint32)
    rows = starts["split_bf16x2"] + 2
    found = np.zeros((4, rows, 32), np.uint32)
    Module(text).launch(f"functions_{capability}", (4,), (32,), [floats, words, found.reshape(-1)])
    results = {name: found[:, start:] for name, start in starts.items()}
    return floats, words, results


def scalar(capability: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    floats, _, results = run(capability)
    return floats.astype(np.float64), np.ascontiguousarray(results[name][:, 0]).view(np.float32).reshape(-1)


@pytest.mark.parametrize("capability", [75, 80])
def test_exp_sigmoid_tanh_and_erf_are_as_near_as_they_say(capability: int) -> None:
    x, found = scalar(capability, "exp")
    np.testing.assert_allclose(found, np.where(x < -87, 0, np.exp(x)), rtol=5e-7, atol=1.2e-38)
    x, found = scalar(capability, "sigmoid")
    x = np.maximum(x, -700)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-x)), rtol=6e-7, atol=1.2e-38)
    x, found = scalar(capability, "tanh")
    np.testing.assert_allclose(found, np.tanh(x), rtol=2e-6)
    x, found = scalar(capability, "erf")
    np.testing.assert_allclose(found, [math.erf(value) for value in x], rtol=4e-7)


@pytest.mark.parametrize("capability", [75, 80])
def test_sums_and_maxima_over_a_warp_and_over_four_lanes(capability: int) -> None:
    x, found = scalar(capability, "warp_sum")
    np.testing.assert_allclose(found.reshape(4, 32), np.repeat(x.reshape(4, 32).sum(1)[:, None], 32, 1), rtol=1e-5)
    x, found = scalar(capability, "warp_max")
    np.testing.assert_array_equal(found.reshape(4, 32), np.repeat(x.reshape(4, 32).max(1)[:, None], 32, 1))
    x, found = scalar(capability, "quad_sum")
    np.testing.assert_allclose(
        found.reshape(32, 4), np.repeat(x.reshape(32, 4).sum(1)[:, None], 4, 1), rtol=1e-5, atol=1e-6
    )
    x, found = scalar(capability, "quad_max")
    np.testing.assert_array_equal(found.reshape(32, 4), np.repeat(x.reshape(32, 4).max(1)[:, None], 4, 1))
    _, words, results = run(capability)
    wanted = words.reshape(4, 32).sum(1, dtype=np.uint32)
    np.testing.assert_array_equal(results["warp_sum_u32"][:, 0], np.repeat(wanted[:, None], 32, 1))


def halves(capability: int, name: str, pairs: int, *, bf16: bool) -> np.ndarray:
    """What a dequantization gave, float32 [words, pairs, 2]."""
    found = np.ascontiguousarray(run(capability)[2][name][:, :pairs].transpose(0, 2, 1)).reshape(-1, pairs)
    if bf16:
        return np.stack([found << 16, found & np.uint32(0xFFFF0000)], -1).view(np.float32)
    return found.view(np.float16).reshape(-1, pairs, 2).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "less", "capability"),
    [
        ("dequant_u4_f16", 0, 75),
        ("dequant_s4_f16", 8, 75),
        ("dequant_u4_f16", 0, 80),
        ("dequant_s4_f16", 8, 80),
        ("biased_u4_bf16", -128, 80),
        ("dequant_u4_bf16", 0, 80),
        ("dequant_s4_bf16", 8, 80),
    ],
)
def test_nibbles_become_exact_halves(name: str, less: int, capability: int) -> None:
    words = run(capability)[1]
    nibbles = (words[:, None] >> (4 * np.arange(8, dtype=np.uint32))) & 15
    wanted = np.stack([nibbles[:, :4], nibbles[:, 4:]], -1).astype(np.float32) - less
    np.testing.assert_array_equal(halves(capability, name, 4, bf16="bf16" in name), wanted)


@pytest.mark.parametrize(("name", "less", "capability"), [("dequant_u8_f16", 0, 75), ("dequant_s8_bf16", 128, 80)])
def test_bytes_become_exact_halves(name: str, less: int, capability: int) -> None:
    given = np.ascontiguousarray(run(capability)[1]).view(np.uint8).reshape(-1, 4)
    wanted = np.stack([given[:, :2], given[:, 2:]], -1).astype(np.float32) - less
    np.testing.assert_array_equal(halves(capability, name, 2, bf16="bf16" in name), wanted)


def test_two_bfloat16_planes_hold_sixteen_bits_of_a_float() -> None:
    floats = run(80)[0]
    planes = halves(80, "split_bf16x2", 2, bf16=True)
    wanted = np.stack([floats, floats * np.float32(0.3)], -1)
    np.testing.assert_allclose(planes.sum(1), wanted, rtol=2.0**-16, atol=1e-38)

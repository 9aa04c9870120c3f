"""Every op's PTX, compiled and run on the emulator, gives what its NumPy twin gives."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from tests.backends.cuda.one_op import MEMORY, WINDOW, dtype_of, probe, values_of
from tools.ptx_emulator import Module

pytest.importorskip("numba_cuda", reason="numba-cuda, which compiles the ops, is not installed")
ptx = importlib.import_module("edgellm.backends.cuda.ptx")
twins = importlib.import_module("edgellm.backends.cuda.ptx.twins")
twins_warp = importlib.import_module("edgellm.backends.cuda.ptx.twins_warp")

CASES = [
    (capability, name)
    for name, op in ptx.OPS.items()
    for capability in (75, 80, 90)
    if op.lowest == capability or (capability == 75 and (op.lowest < 75 or op.older is not None))
]
_FLOATS = [0.0, -0.0, 1.0, -1.5, 2.5, 3.5, np.inf, -np.inf, np.nan, 1e-30, -1e30, 1e-42, 87.3, -103.0, 65504.0, 65536.0]


def twin(name: str) -> Any:
    return getattr(twins, name, None) or getattr(twins_warp, name)


def operands(op: Any, random: np.random.Generator) -> list[Any]:
    """One array [32] a value; indices are distinct and multiples of 4 (of atomics: shared by four lanes)."""
    made = []
    for position, kind in enumerate(op.inputs):
        if kind in MEMORY:
            continue
        if position and op.inputs[position - 1] in MEMORY:
            index = random.permutation(32).astype(np.uint32) * 4
            made.append(np.arange(32, dtype=np.uint32) // 4 if op.name.startswith("atomic") else index)
        elif kind == "f32":
            drawn = random.standard_normal(32) * 10.0 ** random.integers(-4, 5, 32)
            special = np.array(_FLOATS + [0.0] * 16)
            drawn = np.where(random.permutation(32) < 16, special, drawn) if not op.name.startswith("mma") else drawn
            drawn = drawn.astype(np.float32)
            finite = op.name in ("pack_bf16x2", "pack_f16x2", "f32_to_f16") or op.name.startswith("mma")
            made.append(np.where(np.isfinite(drawn), drawn, np.float32(1.0)) if finite else drawn)
        elif "f16x2" in op.name or ("mma" in op.name and "s8" not in op.name):
            halves = random.standard_normal((32, 2)).astype(np.float16)
            bits = halves.astype(np.float32).view(np.uint32) >> 16 if "bf16" in op.name else halves.view(np.uint16)
            made.append(np.ascontiguousarray(bits.astype(np.uint16)).view(np.uint32).reshape(32))
        elif kind == "u16":
            made.append(random.standard_normal(32).astype(np.float16).view(np.uint16))
        else:
            made.append(random.integers(0, 2**32, 32, dtype=np.uint32).view(dtype_of(kind)))
    return _particular(op.name, made, random)


def _particular(name: str, made: list[Any], random: np.random.Generator) -> list[Any]:
    if name == "bar_sync":
        return [np.full(32, 1, np.uint32), np.full(32, 32, np.uint32)]
    if name.startswith("shfl"):
        made[1] = random.integers(0, 32, 32, dtype=np.uint32)
    if name == "ballot":
        made[0] = random.integers(0, 2, 32, dtype=np.uint32)
    if name == "cp_async16_part":
        made[2] = random.integers(0, 17, 32, dtype=np.uint32)
    if name == "prmt":
        made[2] &= np.uint32(0xFFFF)
    if name == "atomic_inc":
        made[1] %= np.uint32(4)
    return made


@pytest.fixture(scope="module")
def ran() -> Any:
    """By capability: what the kernel was given, and what it left."""
    done: dict[int, Any] = {}

    def run(capability: int) -> Any:
        if capability not in done:
            done[capability] = _run(capability)
        return done[capability]

    return run


def _run(capability: int) -> Any:
    random = np.random.default_rng(7)
    ops, layout, text = probe(capability)
    given = {op.name: operands(op, random) for op in ops}
    flat = [value.view(np.uint32) if value.itemsize == 4 else value for op in ops for value in given[op.name]]
    packed = np.array(flat or [np.zeros(32)]).astype(np.uint32)
    found = np.full((1 + sum(len(op.outputs) for op in ops), 32), 0xDEADBEEF, np.uint32)
    memory = random.standard_normal(len(ops) * WINDOW).astype(np.float32).view(np.uint32)
    shared = random.standard_normal(len(ops) * WINDOW).astype(np.float32).view(np.uint32)
    before = memory.copy(), shared.copy()
    Module(text).launch(
        f"probe_{capability}", (1,), (32,), [packed.reshape(-1), found.reshape(-1), memory, shared, memory.size]
    )
    return layout, given, found, before, (memory, shared)


@pytest.mark.parametrize(("capability", "name"), CASES, ids=[f"{name}-sm_{capability}" for capability, name in CASES])
def test_an_op_computes_what_its_twin_does(capability: int, name: str, ran: Any) -> None:
    layout, given, found, before, after = ran(capability)
    op = ptx.OPS[name]
    start = layout.windows[name]
    windows = {kind: array[start : start + WINDOW].copy() for kind, array in zip(MEMORY, before, strict=True)}
    values, arguments = iter(given[name]), []
    for kind in op.inputs:
        arguments.append(windows[kind] if kind in MEMORY else next(values))
    wanted = twin(name)(*arguments)
    wanted = () if wanted is None else wanted if isinstance(wanted, tuple) else (wanted,)
    assert len(wanted) == len(op.outputs)
    for place, (kind, value) in enumerate(zip(op.outputs, wanted, strict=True), layout.outputs[name]):
        got = found[place].astype(np.uint16) if kind == "u16" else found[place].view(dtype_of(kind))
        bound = twins.BOUNDS.get(name, 0.0)
        if name.startswith("mma") and kind == "f32":
            np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-5)
        elif bound:
            np.testing.assert_allclose(got, value, rtol=bound, atol=2.0**-22 if name == "lg2" else 0.0)
        else:
            np.testing.assert_array_equal(got, value)
    for kind, array in zip(MEMORY, after, strict=True):
        np.testing.assert_array_equal(array[start : start + WINDOW], windows[kind], err_msg=kind)


def test_every_op_is_exported_and_has_a_twin() -> None:
    for name, op in ptx.OPS.items():
        assert name in ptx.__all__
        assert callable(twin(name))
        assert len(values_of(op)) + sum(kind in MEMORY for kind in op.inputs) == len(op.inputs)

"""Linears against plain NumPy that quantizes the activations the same way; teams of every size give the same bits."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest

from tests.backends.cpu.kernels import WITHOUT_JIT, cases, elsewhere
from tests.backends.cpu.linear_small import results
from tests.backends.cpu.linears import Linear, nmse, random_weight

BOUND = 1e-7
TOKENS = (1, 3, 9) if WITHOUT_JIT else (1, 2, 3, 7, 8, 9, 33)
SIZES = cases((18, 100, 100), (5, 70, 32), (50, 96, 16), (33, 200, 64), (40, 256, 128), (21, 520, 256))


def activations(tokens: int, inputs: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng((seed, tokens)).standard_normal((tokens, inputs)).astype(np.float32)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "inputs", "group_size"), SIZES)
def test_codes_meet_quantized_activations(rows, inputs, group_size, bits, planes) -> None:
    linear = Linear(random_weight(rows, inputs, bits, group_size))
    for tokens in TOKENS:
        x = activations(tokens, inputs)
        assert nmse(linear.run(x, planes), linear.expected(x, planes)) < BOUND


@pytest.mark.parametrize(("rows", "inputs"), [(40, 64), (5, 71), (33, 1)])
def test_dense_weights(rows: int, inputs: int) -> None:
    linear = Linear(np.random.default_rng(1).standard_normal((rows, inputs)).astype(np.float32))
    for tokens in TOKENS:
        x = activations(tokens, inputs)
        assert nmse(linear.run(x), linear.expected(x)) < BOUND


@pytest.mark.parametrize("kind", ["int4", "int8", "f16"])
def test_results_do_not_depend_on_the_team(kind: str) -> None:
    dense = np.random.default_rng(1).standard_normal((75, 160)).astype(np.float32)
    linear = Linear(dense) if kind == "f16" else Linear(random_weight(75, 160, 4 if kind == "int4" else 8, 32))
    for tokens in TOKENS:
        x = activations(tokens, 160)
        for planes in (1, 2):
            alone = linear.run(x, planes)
            assert all(np.array_equal(alone, linear.run(x, planes, nth)) for nth in (2, 3, 7))


@pytest.mark.parametrize("kind", ["int4", "int8", "f16"])
@pytest.mark.parametrize("rows", [32, 37])
def test_bias_permutation_and_residual(kind: str, rows: int) -> None:
    rng = np.random.default_rng(2)
    bias = rng.standard_normal(rows).astype(np.float32)
    if kind == "f16":
        linear = Linear(rng.standard_normal((rows, 100)).astype(np.float32), bias=bias)
    else:
        linear = Linear(random_weight(rows, 100, 4 if kind == "int4" else 8, 32, permuted=True), bias=bias)
    for tokens in (1, 5):
        x, before = activations(tokens, 100), rng.standard_normal((tokens, rows)).astype(np.float32)
        assert nmse(linear.run(x), linear.expected(x)) < BOUND
        expected = before + 0.25 * linear.expected(x)
        assert nmse(linear.run(x, before=before, multiplier=0.25), expected) < BOUND


@pytest.mark.parametrize("bits", [4, 8])
def test_extreme_codes_and_zero_points_are_exact(bits: int) -> None:
    weight = random_weight(16, 128, bits, 128)
    weight.codes[:8], weight.codes[8:] = 0, (1 << bits) - 1
    weight.zeros[:, 0] = np.array([0, 1 << bits] * 8)
    linear = Linear(weight)
    x = np.where(np.arange(128) < 64, 1.0, -1.0).astype(np.float32)[None] * np.array([[1.0], [3.0]], np.float32)
    x[1] = 3.0
    assert np.allclose(linear.run(x), linear.expected(x), rtol=1e-6, atol=0)
    assert np.allclose(linear.run(x, planes=2), linear.expected(x, 2), rtol=1e-6, atol=0)


def test_activations_that_are_zero_tiny_or_no_numbers() -> None:
    linear = Linear(random_weight(20, 64, 4, 32))
    x = activations(4, 64)
    x[0], x[1, 3], x[2, 40], x[3, :32] = 0, np.nan, np.inf, 1e-38
    for planes in (1, 2):
        found = linear.run(x, planes)
        assert (found[0] == 0).all()
        assert np.isnan(found[1:3]).all()
        assert nmse(found[3:], linear.expected(x[3:], planes)) < BOUND


@pytest.mark.parametrize("bits", [4, 8])
def test_two_planes_lose_almost_nothing(bits: int) -> None:
    linear = Linear(random_weight(64, 1024, bits, 128))
    x = activations(8, 1024)
    exact = x.astype(np.float64) @ linear.dense.astype(np.float64).T
    assert 1e-6 < nmse(linear.run(x, 1), exact) < 1e-4
    assert nmse(linear.run(x, 2), exact) < 1e-8


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_in_stretches(bits: int) -> None:
    """Long rows: bands cut by the ends of threads' shares, tiles of one and of many columns."""
    rows, inputs = (20, 2200) if WITHOUT_JIT else (150, 4500)
    linear = Linear(random_weight(rows, inputs, bits, 128))
    assert linear.layout.stretch < linear.layout.groups
    for tokens, planes in ((1, 1), (1, 2), (3, 2), (11, 1)):
        x = activations(tokens, inputs)
        alone = linear.run(x, planes)
        assert nmse(alone, linear.expected(x, planes)) < BOUND
        assert all(np.array_equal(alone, linear.run(x, planes, nth)) for nth in (2, 3, 7))


@pytest.mark.parametrize("kind", ["int4", "int8", "rounded", "f16", "long"])
def test_an_embedding_is_rows_of_the_packed_weight(kind: str) -> None:
    dense = np.random.default_rng(1).standard_normal((150, 100)).astype(np.float32)
    linears = {
        "int4": (random_weight(150, 100, 4, 32), 16),
        "int8": (random_weight(150, 100, 8, 32), 16),
        "long": (random_weight(150, 4500, 4, 128), 16),
    }
    linear = Linear(*linears.get(kind, (dense, 8 if kind == "rounded" else 16)))
    ids = np.array([0, 149, 17, 128, 15, 17], np.int32)
    expected = linear.dense[ids] * np.float32(0.5)
    for nth in (1, 2, 7):
        assert np.array_equal(linear.rows_of(ids, nth), expected)


def test_the_small_table_on_this_instruction_set() -> None:
    assert max(results().values()) < BOUND


@pytest.mark.parametrize(("isa", "process"), elsewhere("-m", "tests.backends.cpu.linear_small"), indirect=["process"])
def test_the_small_table_elsewhere(isa: str, process: subprocess.CompletedProcess[str]) -> None:
    assert process.returncode == 0, process.stderr[-2000:]
    shown = json.loads(process.stdout)
    assert shown["isa"] == isa
    assert max(shown["results"].values()) < BOUND

"""Activations, the residual sum and the cap against the reference: odd widths, extremes, any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.cpu.activation import op_act_mul, op_add, op_softcap
from edgellm.backends.cpu.optable import ACTIVATIONS
from edgellm.backends.reference import ops
from tests.backends.cpu.kernels import THREADS, cases, nmse, run_parts

SHAPES = cases((1, 37), (3, 5), (2, 300), (1, 1), (2, 4864), (5, 512))


@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
@pytest.mark.parametrize("shape", SHAPES)
def test_act_mul_equals_the_reference(act: str, shape: tuple[int, int]) -> None:
    tokens, width = shape
    rng = np.random.default_rng(width)
    both = rng.standard_normal((tokens, 2 * width), np.float32) * 4
    gate, up = both[:, :width].copy(), both[:, width:].copy()
    expected = ops.act_mul(gate, up, act)
    found = []
    for nth in THREADS:
        buffer = np.concatenate([both.ravel(), np.full(tokens * width + 4, 3, np.float32)])
        args = (both.size, width, 0, 2 * width, width, 2 * width, ACTIVATIONS[act], tokens, width)
        run_parts(op_act_mul, buffer, *args, nth=nth)
        assert (buffer[-4:] == 3).all()
        assert (buffer[: both.size] == both.ravel()).all()
        found.append(buffer[both.size : -4].reshape(tokens, width))
    assert nmse(found[0], expected) < 1e-11
    assert all((other == found[0]).all() for other in found)


@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_extremes_are_the_references(act: str) -> None:
    gate = np.array([0, -0.0, 90, -90, 1e30, -1e30, np.inf, -np.inf, np.nan, 1e-30, 5, -5], np.float32)
    with np.errstate(all="ignore"):
        expected = ops.act_mul(gate, np.ones_like(gate), act)
    buffer = np.concatenate([gate, np.ones_like(gate)])
    op_act_mul(buffer, 0, 0, 0, 0, len(gate), 0, ACTIVATIONS[act], 1, len(gate), 0, 1)
    np.testing.assert_allclose(buffer[: len(gate)], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_add(shape: tuple[int, int]) -> None:
    tokens, width = shape
    rng = np.random.default_rng(width)
    x, y = rng.standard_normal((2, tokens, width), np.float32)
    found = []
    for nth in THREADS:
        buffer = np.concatenate([x.ravel(), y.ravel()])
        run_parts(op_add, buffer, 0, width, x.size, width, 0.22, tokens, width, nth=nth)
        assert (buffer[x.size :] == y.ravel()).all()
        found.append(buffer[: x.size].reshape(x.shape))
    assert nmse(found[0], x + np.float32(0.22) * y) < 1e-13
    assert all((other == found[0]).all() for other in found)


@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_softcap(shape: tuple[int, int], cap: float | None) -> None:
    rng = np.random.default_rng(shape[1])
    x = rng.standard_normal(shape, np.float32) * 40
    found = []
    for nth in THREADS:
        buffer = x.ravel().copy()
        run_parts(op_softcap, buffer, 0, shape[1], 0.5, cap or 0.0, *shape, nth=nth)
        found.append(buffer.reshape(shape))
    assert nmse(found[0], ops.softcap(x * np.float32(0.5), cap)) < 1e-12
    assert all((other == found[0]).all() for other in found)

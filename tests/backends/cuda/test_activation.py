"""Activations and sums against the reference, as the emulator runs their PTX."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.reference import ops
from tests.backends.cuda.launching import launch
from tests.backends.cuda.test_norm import record_of
from tests.backends.cuda.weights import nmse


def operands() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(6)
    gate, up = (rng.standard_normal((2, 500)).astype(np.float32) for _ in range(2))
    gate[0] = np.linspace(-100, 100, 500)
    gate[1] *= 3
    return gate, up


@pytest.mark.parametrize("act", ops.ACTIVATIONS)
def test_act_mul(act: str) -> None:
    gate, up = operands()
    out = np.full_like(gate, np.nan)
    given = {"record": record_of(0), "stride": 500, "width": 500, "step": 1}
    launch(f"act_mul_{act}", (2, 2), {"gate": gate, "up": up, "out": out, **given})
    expected = ops.act_mul(gate, up, act)
    assert nmse(out, expected) < 1e-12
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("act", ops.ACTIVATIONS)
def test_act_mul_to_float16(act: str) -> None:
    gate, up = operands()
    gate[1], up[1] = 1e10, 1e10
    out, scales = np.full((2, 500), 0x7E00, np.uint16), np.full(2, np.nan, np.float32)
    given = {"record": record_of(2), "stride": 500, "width": 500, "step": 0}
    launch(f"act_mul_{act}_float16", (2,), {"gate": gate, "up": up, "out": out, "scales": scales, **given})
    found = out.view(np.float16).astype(np.float64) * scales[:, None]
    expected = ops.act_mul(gate, up, act)
    for row in range(2):
        assert nmse(found[row], expected[row]) < 1e-7


def test_add_and_rounding_to_float16() -> None:
    x, y = operands()
    expected = x + np.float32(0.25) * y
    launch("add", (4,), {"x": x, "y": y, "count": x.size, "multiplier": 0.25})
    np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-6)
    out, scales = np.full((2, 400), 0x7E00, np.uint16), np.full(2, np.nan, np.float32)
    given = {"record": record_of(1), "stride": 500, "width": 400, "step": 0}
    launch("to_float16", (2,), {"x": x, "out": out, "scales": scales, **given})
    assert nmse(out[0].view(np.float16).astype(np.float64) * scales[0], x[0, :400]) < 1e-7
    assert (out[1] == 0x7E00).all()

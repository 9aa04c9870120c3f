"""RMSNorm against the reference: rows and heads, odd widths, in place, any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.cpu.norm import op_rms_norm
from edgellm.backends.reference import ops
from tests.backends.cpu.kernels import THREADS, cases, nmse, run_parts

EPS = 1e-5


def _norm(x: np.ndarray, weight: np.ndarray, group: int, offset: float, nth: int, in_place: bool) -> np.ndarray:
    tokens, width = x.shape
    stride = width + 3
    act = np.full(2 * tokens * stride + 5, 7, np.float32)
    rows = act[5 : 5 + tokens * stride].reshape(tokens, stride)
    rows[:, :width] = x
    out_offset = 5 if in_place else 5 + tokens * stride
    weights = np.concatenate([np.zeros(12, np.uint8), weight.view(np.uint8)])
    sizes = (tokens, width, group, EPS, offset)
    run_parts(op_rms_norm, act, out_offset, stride, 5, stride, weights, 12, *sizes, nth=nth)
    out = act[out_offset : out_offset + tokens * stride].reshape(tokens, stride)
    assert (out[:, width:] == 7).all()
    assert (act[:5] == 7).all()
    return out[:, :width].copy()


@pytest.mark.parametrize(
    ("tokens", "width", "group"),
    cases((1, 40, 40), (2, 24, 8), (1, 1, 1), (3, 896, 896), (5, 256, 64), (2, 160, 80), (7, 130, 65), (1, 4099, 4099)),
)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_equals_the_reference_for_any_number_of_threads(tokens: int, width: int, group: int, offset: float) -> None:
    rng = np.random.default_rng(width)
    x = rng.standard_normal((tokens, width), np.float32) * 3
    weight = rng.standard_normal(group, np.float32)
    expected = ops.rms_norm(x, weight, EPS, offset, group)
    found = [_norm(x, weight, group, offset, nth, in_place) for nth in THREADS for in_place in (False, True)]
    assert nmse(found[0], expected) < 1e-12
    assert all((other == found[0]).all() for other in found)


def test_nan_and_infinity_travel_on() -> None:
    x = np.ones((3, 32), np.float32)
    x[0, 5], x[1, 31] = np.nan, np.inf
    found = _norm(x, np.ones(32, np.float32), 32, 0.0, 2, False)
    assert np.isnan(found[0]).all()
    assert np.isnan(found[1, 31])
    assert np.isfinite(found[2]).all()


def test_a_row_of_zeros_stays_zero() -> None:
    assert (_norm(np.zeros((1, 33), np.float32), np.ones(33, np.float32), 33, 0.0, 1, True) == 0).all()

"""The sums of calibration: exact enough, and honest about what they were given."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.convert.hessian import Hessian, output_error
from edgellm.convert.inverse import invert_to_factor
from edgellm.errors import NumericalError, UsageError


def tokens(count: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, width)) * np.exp(rng.standard_normal(width)) + 0.3).astype(np.float32)


@pytest.mark.parametrize("width", [3, 512, 700])  # one panel, a whole one, more than one
def test_sums_equal_the_definition(width: int) -> None:
    x = tokens(300, width)
    hessian = Hessian(width)
    for part in np.array_split(x, [1, 17, 200]):
        hessian.add(part)
    exact = x.astype(np.float64).T @ x.astype(np.float64)
    found = hessian.matrix()
    assert np.abs(found - exact).max() < 2e-6 * np.abs(exact).max()
    np.testing.assert_array_equal(found, found.T)
    assert hessian.count == 300


def test_more_can_be_added_after_looking() -> None:
    x = tokens(64, 40)
    hessian, whole = Hessian(40), Hessian(40)
    for part in (x[:30], x[30:]):
        hessian.add(part)
        hessian.matrix()
    whole.add(x)
    np.testing.assert_allclose(hessian.matrix(), whole.matrix(), atol=1e-6 * whole.matrix().max())


def test_many_small_numbers_are_not_lost_to_a_large_sum() -> None:
    """65,536 rows: float32 sums would be off by a thousandth of a small channel's square, float64 sums are not."""
    x = np.full((512, 2), 0.1, np.float32)
    hessian = Hessian(2)
    for _ in range(128):
        hessian.add(x)
    np.testing.assert_allclose(hessian.matrix(), 65536 * np.float64(np.float32(0.1)) ** 2, rtol=1e-6)


def test_how_tokens_come_in_changes_nothing() -> None:
    x = tokens(5000, 20)
    at_once, in_parts = Hessian(20), Hessian(20)
    at_once.add(x)
    for part in np.array_split(x, [1, 700, 2048, 2049, 4700]):
        in_parts.add(part)
    np.testing.assert_array_equal(at_once.matrix(), in_parts.matrix())
    assert at_once.count == in_parts.count == 5000


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_what_is_not_finite_is_refused_and_not_added(bad: float) -> None:
    hessian, x = Hessian(8, "layers.3.self_attn.o_proj"), tokens(10, 8)
    hessian.add(x)
    before = hessian.matrix().copy()
    x[4, 5] = bad
    with pytest.raises(NumericalError, match=r"layers\.3\.self_attn\.o_proj: .* channel 5"):
        hessian.add(x)
    np.testing.assert_array_equal(hessian.matrix(), before)
    assert hessian.count == 10


def test_another_width_is_refused() -> None:
    with pytest.raises(UsageError, match=r"q: wrong shape.*allowed: \[n, 8\]"):
        Hessian(8, "q").add(np.zeros((2, 9), np.float32))


def test_output_error_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(3)
    difference, x = rng.standard_normal((520, 30)).astype(np.float32), rng.standard_normal((90, 30))
    assert output_error(difference, x.T @ x) == pytest.approx(np.square(x @ difference.T).sum(), rel=1e-9)


@pytest.mark.parametrize("size", [1, 5, 256, 300, 515])
def test_the_factor_of_the_inverse(size: int) -> None:
    x = np.random.default_rng(4).standard_normal((size + 50, size))
    h = x.T @ x + np.eye(size)
    upper = np.triu(invert_to_factor(np.triu(h)))  # what is below the diagonal is not read
    np.testing.assert_allclose(upper.T @ upper @ h, np.eye(size), atol=1e-8)
    reference = np.linalg.cholesky(np.linalg.inv(h)).T
    np.testing.assert_allclose(upper, reference, atol=1e-9)


def test_what_is_not_positive_definite_has_no_factor() -> None:
    h = np.diag([1.0, -1.0, 2.0])
    with pytest.raises(np.linalg.LinAlgError):
        invert_to_factor(h)

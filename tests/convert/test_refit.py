"""The least squares behind a cut, against NumPy's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.convert.refit import damped, refit, spread
from edgellm.errors import NumericalError, UsageError


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 2**31))
def test_it_is_the_least_squares_solution(inputs, outputs, seed):
    random = np.random.default_rng(seed)
    x = random.standard_normal((60, inputs)) @ random.standard_normal((inputs, inputs))  # dependent inputs
    weight = random.standard_normal((outputs, inputs)).astype(np.float32)
    keep = np.sort(random.permutation(inputs)[: max(inputs // 2, 1)])
    target = x @ weight.T
    best, *_ = np.linalg.lstsq(x[:, keep], target, rcond=None)
    found = refit(weight, x.T @ x, keep, ridge=1e-10)
    least = np.square(target - x[:, keep] @ best).sum()
    error = np.square(target - x[:, keep] @ found.T.astype(np.float64)).sum()
    assert error <= least * (1 + 1e-4) + 1e-6 * np.square(target).sum()


def test_nothing_removed_changes_nothing_whatever_the_ridge():
    weight = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    hessian = np.eye(5)
    np.testing.assert_array_equal(refit(weight, hessian, np.arange(5), ridge=10.0), weight)
    # independent inputs cannot stand in for each other
    np.testing.assert_array_equal(refit(weight, hessian, np.array([0, 3]), ridge=0.01), weight[:, [0, 3]])


def test_a_copy_takes_over_what_its_twin_added():
    x = np.random.default_rng(0).standard_normal((100, 1))
    x = np.concatenate([x, x, np.random.default_rng(1).standard_normal((100, 1))], axis=1)
    weight = np.array([[1.0, 2.0, 3.0]], np.float32)
    np.testing.assert_allclose(refit(weight, x.T @ x, np.array([0, 2]), ridge=1e-9), [[3.0, 3.0]], atol=1e-5)


def test_outputs_that_are_asked_for_are_found_and_the_ridge_holds_on_to_the_weight_there_is():
    random = np.random.default_rng(0)
    x, wanted = random.standard_normal((200, 6)), random.standard_normal((3, 6))
    weight = random.standard_normal((3, 6)).astype(np.float32)
    sums = x.T @ x, np.arange(6)
    cross = x.T @ (x @ wanted.T)
    np.testing.assert_allclose(refit(weight, *sums, ridge=1e-9, cross=cross), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(refit(weight, *sums, ridge=1e9, cross=cross), weight, atol=1e-6)


def test_inputs_that_were_never_seen_do_no_harm():
    weight = np.ones((2, 4), np.float32)
    assert np.isfinite(refit(weight, np.zeros((4, 4)), np.array([0, 1]))).all()
    assert damped(np.zeros((2, 2)), 0.01).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_what_does_not_fit_is_said():
    weight = np.ones((2, 4), np.float32)
    for hessian, keep, ridge in ((np.eye(3), [0], 0.01), (np.eye(4), [], 0.01), (np.eye(4), [0], 0.0)):
        with pytest.raises(UsageError):
            refit(weight, hessian, np.array(keep, int), ridge)
    with pytest.raises(NumericalError):
        refit(weight, np.full((4, 4), np.nan), np.array([0]))


def test_spread_puts_columns_at_their_places():
    assert spread(np.array([[1.0, 2.0]]), np.array([1, 3]), 4).tolist() == [[0.0, 1.0, 0.0, 2.0]]

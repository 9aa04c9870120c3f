"""Zeros for research: patterns kept, and SparseGPT's update against the exact least squares."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.convert.hessian import output_error
from edgellm.convert.refit import damped, refit, spread
from edgellm.convert.sparsity import Sparsity, sparsify
from edgellm.errors import UsageError

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((400, 16)) @ RANDOM.standard_normal((16, 16))
HESSIAN = X.T @ X
WEIGHT = RANDOM.standard_normal((12, 16)).astype(np.float32)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_shares_and_patterns_are_kept(method):
    half = sparsify(WEIGHT, HESSIAN, Sparsity(method, block_size=8))
    assert (half == 0).mean() == 0.5
    pattern = sparsify(WEIGHT, HESSIAN, Sparsity(method, pattern=(2, 4), block_size=8))
    assert ((pattern.reshape(12, 4, 4) != 0).sum(axis=2) == 2).all()
    some = sparsify(WEIGHT, HESSIAN, Sparsity(method, share=0.25, block_size=16))
    assert (some == 0).mean() == 0.25


def test_what_knows_the_inputs_does_better():
    errors = {
        method: output_error(WEIGHT - sparsify(WEIGHT, HESSIAN, Sparsity(method)), HESSIAN)
        for method in ("magnitude", "wanda", "sparsegpt")
    }
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


def test_the_columns_behind_make_up_for_a_zero_exactly():
    """One column goes: what the others behind it become is the least squares solution over them."""
    weight = WEIGHT.copy()
    weight[:, 1:] *= 1e3  # so that the whole first column is what matters least
    share = 1 / 16
    found = sparsify(weight, HESSIAN, Sparsity("sparsegpt", share=share, block_size=16))
    assert (found[:, 0] == 0).all()
    keep = np.arange(1, 16)
    exact = spread(refit(weight, damped(HESSIAN, 0.01), keep, 1e-12), keep, 16)
    np.testing.assert_allclose(found[:, 1:], exact[:, 1:], rtol=1e-4)


def test_what_does_not_fit_is_said():
    for options in ({"method": "guess"}, {"share": 1.0}, {"pattern": (4, 2)}, {"pattern": (2, 4), "block_size": 6}):
        with pytest.raises(UsageError):
            Sparsity(**options)
    with pytest.raises(UsageError, match="hessian"):
        sparsify(WEIGHT, None, Sparsity("wanda"))
    with pytest.raises(UsageError, match="pattern"):
        sparsify(WEIGHT[:, :15], HESSIAN, Sparsity("magnitude", pattern=(2, 4)))

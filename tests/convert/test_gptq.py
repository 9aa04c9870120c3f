"""GPTQ against exact least squares on tiny matrices, and against round to nearest on larger ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.convert.gptq import factor_hessian, quantize_gptq
from edgellm.convert.hessian import output_error
from edgellm.convert.rtn import quantize_rtn
from edgellm.convert.scheme import Scheme
from edgellm.errors import NumericalError, UsageError
from edgellm.formats import gptq


def case(rows: int, inputs: int, seed: int, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """(weight float32 [rows, inputs], Hessian float64 [inputs, inputs]) with correlated, unequal channels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, inputs)) @ rng.standard_normal((inputs, inputs))
    x *= np.exp(spread * rng.standard_normal(inputs))
    return (rng.standard_normal((rows, inputs)) * 0.1).astype(np.float32), x.T @ x


def damped(hessian: np.ndarray, percent: float = 0.01) -> np.ndarray:
    return hessian + np.eye(len(hessian)) * percent * hessian.diagonal().mean()


def by_least_squares(
    weight: np.ndarray, hessian: np.ndarray, scales: np.ndarray, zeros: np.ndarray, top: int
) -> np.ndarray:
    """Codes of one row on a given grid a column, every column's consequences found by solving the normal equations.

    After columns 0..j have their values, the rest is what minimizes (w' - w)^T H (w' - w) with those fixed.
    """
    codes, fixed, moved = [], [], weight.astype(np.float64)
    inputs = len(weight)
    for j in range(inputs):
        code = np.clip(np.floor(moved[j] / scales[j] + zeros[j] + 0.5), 0, top)
        codes.append(code)
        fixed.append(scales[j] * (code - zeros[j]) - weight[j])
        a, b = slice(0, j + 1), slice(j + 1, inputs)
        moved = weight.astype(np.float64).copy()
        moved[a] += fixed
        if j + 1 < inputs:
            moved[b] -= np.linalg.solve(hessian[b, b], hessian[b, a] @ np.array(fixed))
    return np.array(codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("desc_act", [False, True])
def test_every_update_is_the_exact_least_squares_one(bits: int, sym: bool, desc_act: bool) -> None:
    weight, hessian = case(6, 16, bits)
    scheme = Scheme(bits, 16, sym, desc_act=desc_act, static_groups=True)  # one grid a row, known beforehand
    found = quantize_gptq(weight, hessian, scheme).tensor
    order = np.argsort(-hessian.diagonal(), kind="stable") if desc_act else np.arange(16)
    h = damped(hessian)[np.ix_(order, order)]
    for row in range(6):
        scales = np.repeat(found.scales[row].astype(np.float64), 16)
        zeros = np.repeat(found.zeros[row], 16)
        expected = by_least_squares(weight[row, order], h, scales, zeros, 2**bits - 1)
        np.testing.assert_array_equal(found.codes[row, order], expected)


@pytest.mark.parametrize("sym", [True, False])
def test_a_group_is_measured_when_it_is_entered(sym: bool) -> None:
    """Columns of the second group have moved by then: its grid is that of the moved weights."""
    weight, hessian = case(5, 32, 9)
    found = quantize_gptq(weight, hessian, Scheme(3, 16, sym)).tensor
    h, a, b = damped(hessian), slice(0, 16), slice(16, 32)
    first = found.dequantize()[:, a] - weight[:, a]
    moved = weight[:, b] - np.linalg.solve(h[b, b], h[b, a] @ first.T).T.astype(np.float32)
    expected = quantize_rtn(moved, Scheme(3, 16, sym))
    np.testing.assert_allclose(found.scales[:, 1:], expected.scales, rtol=2e-3)
    unmoved = quantize_rtn(weight[:, b], Scheme(3, 16, sym))
    assert (found.scales[:, 1:] != unmoved.scales).any()


OPTIONS = list(itertools.product([True, False], [False, True], [False, True], [32, -1]))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("sym", "desc_act", "static_groups", "group_size"), OPTIONS)
def test_loss_is_below_that_of_rounding(
    bits: int, sym: bool, desc_act: bool, static_groups: bool, group_size: int
) -> None:
    weight, hessian = case(32, 96, bits)
    scheme = Scheme(bits, group_size, sym, desc_act=desc_act, static_groups=static_groups)
    found = quantize_gptq(weight, hessian, scheme)
    difference = found.tensor.dequantize() - weight
    rounded = quantize_rtn(weight, scheme).dequantize() - weight
    assert output_error(difference, hessian) < (0.9 if bits == 2 else 0.7) * output_error(rounded, hessian)
    assert found.loss == pytest.approx(output_error(difference, damped(hessian)), rel=1e-4)
    assert found.damp_percent_used == 0.01
    assert found.tensor.symmetric or not sym
    packed = gptq.pack(found.tensor)
    back = gptq.unpack(packed, bits=bits, group_size=group_size)
    np.testing.assert_array_equal(back.dequantize(), found.tensor.dequantize())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([(2, "mse"), (3, "minmax"), (3, "mse"), (4, "minmax"), (4, "mse")]),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_loss_is_below_that_of_rounding_for_any_seed(seed: int, how: tuple[int, str], sym: bool, spread: float) -> None:
    """No theorem: at 2 bits with grids over the whole range, where errors are as large as weights, it can be above."""
    bits, search = how
    weight, hessian = case(32, 96, seed, spread)
    scheme = Scheme(bits, 32, sym, search=search)
    rounded = quantize_rtn(weight, scheme, hessian.diagonal()).dequantize() - weight
    assert quantize_gptq(weight, hessian, scheme).loss < output_error(rounded, damped(hessian))


def test_act_order_is_in_the_file_and_nowhere_else() -> None:
    weight, hessian = case(8, 64, 1)
    found = quantize_gptq(weight, hessian, Scheme(4, 16, desc_act=True)).tensor
    order = np.argsort(-hessian.diagonal(), kind="stable")
    np.testing.assert_array_equal(found.permutation, order)
    g_idx = gptq.pack(found)["g_idx"]
    np.testing.assert_array_equal(g_idx[order], np.arange(64) // 16)
    assert np.corrcoef(found.dequantize().ravel(), weight.ravel())[0, 1] > 0.95  # columns are where they belong
    for scheme in (Scheme(4, 16, desc_act=True, static_groups=True), Scheme(4, -1, desc_act=True)):
        assert quantize_gptq(weight, hessian, scheme).tensor.permutation is None
    falling = np.diag(np.arange(64, 0, -1.0))
    assert quantize_gptq(weight, falling, Scheme(4, 16, desc_act=True)).tensor.permutation is None


def test_independent_inputs_are_rounded_to_nearest() -> None:
    weight, _ = case(8, 64, 2)
    scheme = Scheme(4, 32)
    found = quantize_gptq(weight, np.eye(64) * 3, scheme).tensor
    np.testing.assert_array_equal(found.codes, quantize_rtn(weight, scheme).codes)


def test_blocks_threads_and_shared_factors_change_nothing_but_rounding() -> None:
    weight, hessian = case(70, 128, 3)
    scheme = Scheme(4, 32, desc_act=True)
    whole = quantize_gptq(weight, hessian, scheme, threads=1)
    factor = factor_hessian(hessian, desc_act=True)
    for other in (
        quantize_gptq(weight, hessian, scheme, threads=3),
        quantize_gptq(weight, factor, scheme),
        quantize_gptq(weight, factor, scheme),
    ):
        np.testing.assert_array_equal(whole.tensor.codes, other.tensor.codes)
        np.testing.assert_array_equal(whole.tensor.scales, other.tensor.scales)
        assert whole.loss == other.loss
    with pytest.raises(UsageError, match="block_size"):
        quantize_gptq(weight, hessian, scheme, block_size=24)
    for block_size in (16, 32, 64):
        other = quantize_gptq(weight, hessian, scheme, block_size=block_size)
        assert (whole.tensor.codes != other.tensor.codes).mean() < 0.01
        assert other.loss == pytest.approx(whole.loss, rel=0.01)


def test_arguments_are_left_as_they_are() -> None:
    weight, hessian = case(8, 32, 4)
    kept = weight.copy(), hessian.copy()
    for desc_act in (False, True):
        quantize_gptq(weight, hessian, Scheme(4, 16, desc_act=desc_act))
    np.testing.assert_array_equal(weight, kept[0])
    np.testing.assert_array_equal(hessian, kept[1])


def test_inputs_that_were_never_used_become_zero_and_disturb_nobody() -> None:
    weight, hessian = case(8, 64, 5)
    dead = [3, 40, 41]
    hessian[dead], hessian[:, dead] = 0, 0
    weight[:, 3] = 100  # would stretch its group's grid
    for desc_act in (False, True):
        found = quantize_gptq(weight, hessian, Scheme(4, 16, desc_act=desc_act)).tensor.dequantize()
        assert (found[:, dead] == 0).all()
        alive = [i for i in range(64) if i not in dead]
        assert np.abs(found[:, alive] - weight[:, alive]).max() < 0.2


def test_dampening_grows_until_the_matrix_factors() -> None:
    weight, _ = case(8, 32, 6)
    vectors, _ = np.linalg.qr(np.random.default_rng(6).standard_normal((32, 32)))
    values = np.linspace(1, 2, 32)
    values[0] = -0.05 * values.mean()  # what rounding can do to a badly conditioned sum
    found = quantize_gptq(weight, (vectors * values) @ vectors.T, Scheme(4, 16))
    assert found.damp_percent_used == pytest.approx(0.1)
    rank_one = np.outer(np.arange(1, 33.0), np.arange(1, 33.0))
    assert quantize_gptq(weight, rank_one, Scheme(4, 16)).damp_percent_used == 0.01


def test_what_cannot_be_quantized_is_refused() -> None:
    weight, hessian = case(4, 32, 7)
    with pytest.raises(UsageError, match="hessian: not square"):
        quantize_gptq(weight, hessian[:, :5], Scheme(4, 16))
    with pytest.raises(UsageError, match="does not fit weight and scheme"):
        quantize_gptq(weight[:, :16], hessian, Scheme(4, 16))
    with pytest.raises(UsageError, match="not ordered"):
        quantize_gptq(weight, factor_hessian(hessian), Scheme(4, 16, desc_act=True))
    with pytest.raises(UsageError, match="damp_percent"):
        quantize_gptq(weight, hessian, Scheme(4, 16), damp_percent=0)
    hessian[2, 2] = np.nan
    with pytest.raises(NumericalError, match="hessian"):
        quantize_gptq(weight, hessian, Scheme(4, 16))
    with pytest.raises(NumericalError, match="cannot be factored"):
        quantize_gptq(weight, np.ones((32, 32)) * np.where(np.eye(32), 1, 1e6), Scheme(4, 16))

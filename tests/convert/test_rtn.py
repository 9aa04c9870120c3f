"""Round to nearest against the formula, and what its results promise to files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgellm.convert.rtn import quantize_rtn
from edgellm.convert.scheme import Scheme
from edgellm.errors import NumericalError, UsageError
from edgellm.formats import awq, gptq

BITS = (2, 3, 4, 8)


def normal(rows: int, inputs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, inputs)).astype(np.float32) * np.float32(0.05)


def plain(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The dequantized weight by the textbook, one group at a time, in float64."""
    top, width = 2**scheme.bits - 1, scheme.group_width(weight.shape[1])
    result = np.empty(weight.shape)
    for row in range(len(weight)):
        for a in range(0, weight.shape[1], width):
            x = weight[row, a : a + width].astype(np.float64)
            low, high = min(x.min(), 0), max(x.max(), 0)
            if scheme.sym:
                scale, zero = float(np.float16(2 * max(-low, high) / top)), (top + 1) // 2
            else:
                scale = float(np.float16((high - low) / top))
                zero = np.floor(-low / scale + 0.5)
                if zero < 1:
                    scale, zero = float(np.float16(max(scale, high / (top - 1)))), 1
            codes = np.clip(np.floor(x / scale + zero + 0.5), 0, top)
            result[row, a : a + width] = scale * (codes - zero)
    return result


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("group_size", [16, 32, -1])
def test_equal_to_the_formula(bits: int, sym: bool, group_size: int) -> None:
    weight, scheme = normal(20, 72, bits), Scheme(bits, group_size, sym)  # 72: the last group is short
    found, expected = quantize_rtn(weight, scheme).dequantize(), plain(weight, scheme)
    ties = np.abs(found - expected) > 1e-6  # float32 and float64 may part where a weight is half way between codes
    assert ties.mean() < 0.01
    np.testing.assert_allclose(np.abs(found - weight), np.abs(expected - weight), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, (3, 40), elements=st.floats(-4000, 4000, width=32)),
    st.sampled_from(BITS),
    st.booleans(),
    st.sampled_from(["minmax", "mse"]),
)
def test_what_files_can_hold(weight: np.ndarray, bits: int, sym: bool, search: str) -> None:
    tensor = quantize_rtn(weight, Scheme(bits, 16, sym, search=search))
    assert tensor.scales.dtype == np.float16
    assert (tensor.scales > 0).all()
    assert tensor.codes.max() < 2**bits
    if sym:
        assert tensor.symmetric
    assert tensor.zeros.min() >= 1
    assert tensor.zeros.max() <= 2**bits - 1
    if search == "minmax":
        error = np.abs(tensor.dequantize() - weight).reshape(-1)
        scales = np.repeat(tensor.scales.astype(np.float32), 16, axis=1)[:, :40].reshape(-1)
        assert (error <= 0.51 * scales + 0.002 * np.abs(weight).reshape(-1)).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sym", [True, False])
def test_gptq_and_awq_files_give_it_back(bits: int, sym: bool) -> None:
    weight = normal(32, 64)
    weight[:4] = np.abs(weight[:4])  # groups without a negative weight: a zero point of 0 could not be stored
    weight[4:8] = -np.abs(weight[4:8])
    tensor = quantize_rtn(weight, Scheme(bits, 16, sym))
    for carry in (False, True):
        packed = gptq.pack(tensor, word_carry=carry)
        back = gptq.unpack(packed, bits=bits, group_size=16, word_carry=carry)
        np.testing.assert_array_equal(back.dequantize(), tensor.dequantize())
    if bits == 4:
        np.testing.assert_array_equal(
            awq.unpack(awq.pack(tensor), group_size=16).dequantize(), tensor.dequantize()
        )  # fmt: skip


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sym", [True, False])
def test_a_search_is_never_worse(bits: int, sym: bool) -> None:
    weight = normal(32, 128, 1)
    importance = np.random.default_rng(2).uniform(0.01, 10, 128).astype(np.float32)
    errors = {}
    for search in ("minmax", "mse"):
        difference = quantize_rtn(weight, Scheme(bits, 32, sym, search=search), importance).dequantize() - weight
        errors[search] = (difference**2 * importance).reshape(32, 4, 32).sum(axis=2)
    assert (errors["mse"] <= errors["minmax"] * 1.0001).all()
    if bits < 8:
        assert errors["mse"].sum() < 0.97 * errors["minmax"].sum()


def test_importance_moves_the_scale_towards_what_counts() -> None:
    weight = np.full((1, 32), 0.2, np.float32)
    weight[0, 0] = -1.0
    scheme, loud = Scheme(2, 32, search="mse"), np.ones(32, np.float32)
    loud[0] = 1000
    assert abs(quantize_rtn(weight, scheme, loud).dequantize()[0, 0] + 1) < 0.05
    assert abs(quantize_rtn(weight, scheme).dequantize()[0, 0] + 1) > 0.2


def test_threads_and_views_change_nothing() -> None:
    weight, scheme = normal(130, 64), Scheme(4, 32, False, search="mse")
    one = quantize_rtn(weight, scheme, threads=1)
    weight.setflags(write=False)
    for other in (quantize_rtn(weight, scheme, threads=3), quantize_rtn(np.asfortranarray(weight), scheme)):
        for name in ("codes", "scales", "zeros"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_zeros_tiny_and_large_weights() -> None:
    weight = np.zeros((4, 32), np.float32)
    weight[1], weight[2], weight[3] = 1e-12, 1e-6, 60000
    for scheme in (Scheme(4, 16), Scheme(4, 16, False)):
        found = quantize_rtn(weight, scheme).dequantize()
        assert (found[:2] == 0).all()
        np.testing.assert_allclose(found[2], weight[2], rtol=0.1)  # subnormal scales
        np.testing.assert_allclose(found[3], weight[3], rtol=0.08)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_damaged_weights_are_refused(bad: float) -> None:
    weight = normal(4, 32)
    weight[2, 7] = bad
    with pytest.raises(NumericalError, match="weight: a weight is NaN or infinite"):
        quantize_rtn(weight, Scheme(4, 16))
    with pytest.raises(NumericalError, match="beyond float16"):
        quantize_rtn(np.full((1, 32), 1e8, np.float32), Scheme(4, 16))
    with pytest.raises(NumericalError, match="importance"):
        quantize_rtn(normal(4, 32), Scheme(4, 16), np.full(32, bad, np.float32))


def test_wrong_shapes_and_schemes_are_named() -> None:
    with pytest.raises(UsageError, match=r"allowed: \[out, in\]"):
        quantize_rtn(np.zeros(4, np.float32), Scheme())
    with pytest.raises(UsageError, match=r"importance.*\[32\]"):
        quantize_rtn(normal(4, 32), Scheme(4, 16), np.ones(31, np.float32))
    with pytest.raises(UsageError, match="limits"):
        quantize_rtn(normal(4, 32), Scheme(4, 16), limits=np.ones((4, 3), np.float32))
    for options in ({"bits": 5}, {"bits": True}, {"group_size": 48}, {"sym": 1}, {"search": "best"}):
        with pytest.raises(UsageError, match=next(iter(options))):
            Scheme(**options)

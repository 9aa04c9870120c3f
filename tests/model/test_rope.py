"""Rotary frequencies: formulas worked by hand, and float64 where float32 would be off."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from edgellm.model.rope import Rope


def test_default_frequencies() -> None:
    np.testing.assert_allclose(Rope(10000.0, 8).inv_freq(), [1.0, 0.1, 0.01, 0.001], rtol=1e-15)


def test_linear_divides_every_frequency() -> None:
    np.testing.assert_array_equal(Rope(100.0, 4, "linear", 4.0).inv_freq() * 4, Rope(100.0, 4).inv_freq())


def test_llama3_keeps_short_stretches_long_and_blends_between() -> None:
    rope = Rope(10000.0, 8, "llama3", 8.0, 1.0, 4.0, 128)
    plain, scaled = Rope(10000.0, 8).inv_freq(), rope.inv_freq()
    assert scaled[0] == plain[0]  # wavelength 6.3 < 128 / 4
    turns = 128 * 0.1 / (2 * math.pi)  # 2.04 turns in 128 tokens: between 1 and 4
    smooth = (turns - 1) / 3
    assert scaled[1] == pytest.approx((1 - smooth) * 0.1 / 8 + smooth * 0.1, rel=1e-12)
    np.testing.assert_allclose(scaled[2:], plain[2:] / 8, rtol=1e-15)  # wavelength 628 > 128


@pytest.mark.parametrize("position", [4095, 1 << 17, 1 << 20, 10_000_000])
def test_angles_stay_right_at_far_positions(position: int) -> None:
    rope = Rope(500000.0, 64)
    cos, sin = rope.cos_sin(np.array([position]))
    two_pi = Fraction(2) * Fraction("3.14159265358979323846264338327950288419716939937510582")
    for j, frequency in enumerate(rope.inv_freq()):
        exact = float(Fraction(float(frequency)) * position % two_pi)
        assert cos[0, j] == pytest.approx(math.cos(exact), abs=2e-7)
        assert sin[0, j] == pytest.approx(math.sin(exact), abs=2e-7)


def test_partial_rotation_turns_the_first_elements() -> None:
    assert len(Rope(10000.0, 6).inv_freq()) == 3

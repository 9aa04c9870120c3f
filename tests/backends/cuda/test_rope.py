"""Rotation by fixed-point turns against float64 angles, as the emulator runs its PTX."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from edgellm.backends.cuda.kernels.turns import turn_words
from edgellm.backends.reference import ops
from edgellm.backends.slots import SlotState
from edgellm.model.rope import Rope
from tests.backends.cuda.attending import records
from tests.backends.cuda.launching import launch


def turn(rope: Rope, x: np.ndarray, head_dim: int, state: SlotState, numbered: np.ndarray | None, **given) -> None:
    tokens, width = x.shape
    arguments = {
        "x": x,
        "positioned": x,
        "numbered": numbered,
        "turns": turn_words(rope.inv_freq()),
        "weight": None,
        "record": records([state], [tokens]),
        "stride": width,
        "target_stride": width,
        "heads": width // head_dim,
        "head_dim": head_dim,
        "half": rope.rotary_dim // 2,
        "step": 0,
        "norm": 0,
        "eps": 0.0,
        "offset": 0.0,
    }
    launch("rope", (-(-width // head_dim // 4), tokens), arguments | given)


def exact_cos_sin(inv_freq: float, position: int) -> tuple[float, float]:
    """Of inv_freq * position, reduced in rational numbers."""
    two_pi = 2 * Fraction("3.14159265358979323846264338327950288419716939937511")
    angle = float(Fraction(float(inv_freq)) * int(position) % two_pi)
    return math.cos(angle), math.sin(angle)


@pytest.mark.parametrize("end", [0, 131_000, 4_000_000_000])
@pytest.mark.parametrize("rope", [Rope(10000.0, 48), Rope(5e5, 32, "llama3", 8.0), Rope(1e6, 12, "linear", 0.01)])
def test_positions_however_far(rope: Rope, end: int) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((3, 5 * 48)).astype(np.float32)
    positions = np.arange(end, end + 3)
    cos, sin = np.frompyfunc(exact_cos_sin, 2, 2)(rope.inv_freq()[None, :], positions[:, None])
    cos, sin = cos.astype(np.float32), sin.astype(np.float32)
    expected = ops.rope(x.reshape(3, 5, 48), cos, sin).reshape(x.shape)
    turn(rope, x, 48, SlotState(0, end=end), None)
    np.testing.assert_allclose(x, expected, atol=1e-6)


def test_numbers_are_written_beside_once_tokens_have_left() -> None:
    rope, rng = Rope(10000.0, 16), np.random.default_rng(4)
    x = rng.standard_normal((2, 3 * 20)).astype(np.float32)
    weight = rng.standard_normal(20).astype(np.float32)
    normed = np.stack([ops.rms_norm(row.reshape(3, 20), weight, 1e-6, 1.0) for row in x])
    state = SlotState(0, sinks=4, evicted=300, end=1000)
    numbered = np.full_like(x, np.nan)
    turn(rope, x, 20, state, numbered, norm=1, weight=weight, eps=1e-6, offset=1.0)
    for found, start in ((x, 700), (numbered, 1000)):
        expected = ops.rope(normed, *rope.cos_sin(np.arange(start, start + 2)))
        np.testing.assert_allclose(found.reshape(2, 3, 20), expected, atol=2e-6)


def test_words_wrap_exactly() -> None:
    words = turn_words(np.array([1 / (2 * np.pi), np.pi / 2, 2 * np.pi * 0.75 + 4 * np.pi]))
    wanted = np.array([0.025330295910584444 * 2**64, 2**62, 3 * 2**62])
    np.testing.assert_allclose(words.astype(np.float64), wanted, rtol=1e-15)

from __future__ import annotations

import math

import numpy as np
import pytest

from edgellm.convert.distill.optimizer import AdamW, Schedule, clip


def test_adamw_makes_the_steps_of_the_paper():
    random = np.random.default_rng(0)
    start, vector = random.normal(size=(3, 2)), random.normal(size=4)
    arrays = {"matrix": start.copy(), "vector": vector.copy()}
    optimizer = AdamW(arrays, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
    expected = {name: array.copy() for name, array in arrays.items()}
    mean = dict.fromkeys(arrays, 0.0)
    square = dict.fromkeys(arrays, 0.0)
    for step in range(1, 6):
        grads = {name: random.normal(size=array.shape) for name, array in arrays.items()}
        for name, g in grads.items():
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.99 * square[name] + 0.01 * g * g
            decay = 0.1 if name == "matrix" else 0.0
            move = mean[name] / (1 - 0.9**step) / (np.sqrt(square[name] / (1 - 0.99**step)) + 1e-6)
            expected[name] = expected[name] - 0.05 * (move + decay * expected[name])
        optimizer.step({name: g.copy() for name, g in grads.items()}, 0.05)
    for name, array in arrays.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-10)


def test_the_schedule_rises_and_falls():
    schedule = Schedule(peak=1.0, steps=100, warmup=10)
    rates = [schedule.at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert Schedule(0.5, 1, 0).at(0) == 0.5


def test_clipping_keeps_the_direction():
    grads = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    assert clip(grads, 1.0) == pytest.approx(5.0)
    np.testing.assert_allclose(grads["a"], [0.6, 0])
    np.testing.assert_allclose(grads["b"], [[0.8]])
    assert clip(grads, 10.0) == pytest.approx(1.0)
    np.testing.assert_allclose(grads["b"], [[0.8]])
    assert math.isnan(clip({"a": np.array([math.nan])}, 1.0))

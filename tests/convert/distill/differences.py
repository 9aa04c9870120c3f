"""Central finite differences in float64, what every backward is held to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

STEP = 1e-6


def slope(loss: Callable[[], float], array: np.ndarray, direction: np.ndarray, step: float = STEP) -> float:
    """The derivative of `loss`, a function of `array` as it is, along `direction`."""
    kept = array.copy()
    array += step * direction
    above = loss()
    array[...] = kept - step * direction
    below = loss()
    array[...] = kept
    return (above - below) / (2 * step)


def check(loss: Callable[[], float], arrays: dict[str, np.ndarray], grads: dict[str, np.ndarray]) -> None:
    """Each gradient agrees with differences along three random directions and along one element."""
    random = np.random.default_rng(7)
    for name, array in arrays.items():
        assert array.dtype == np.float64, name
        assert grads[name].shape == array.shape, name
        directions = [random.normal(size=array.shape) for _ in range(3)]
        one = np.zeros_like(array)
        one.reshape(-1)[random.integers(array.size)] = 1.0
        for direction in [*directions, one]:
            expected = slope(loss, array, direction)
            found = float((grads[name] * direction).sum())
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7, err_msg=name)

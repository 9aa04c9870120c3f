"""Weights that map given inputs to given outputs best, near those there were."""

from __future__ import annotations

import numpy as np


class LeastSquares:
    """Sums for min over D of |X D^T - R|^2 + ridge |D|^2: what to add to a weight so that it makes up for residuals R.

    The ridge holds on to the weight that there is, as in `convert.refit`; the sums here are of residuals, not of cuts.

    Args:
        inputs, outputs: features.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self._gram = np.zeros((inputs, inputs), np.float64)
        self._cross = np.zeros((inputs, outputs), np.float64)

    def add(self, x: np.ndarray, residual: np.ndarray) -> None:
        """Count rows x [n, in] and the residuals [n, out] of what the weight gives for them."""
        self._gram += x.T @ x
        self._cross += x.T @ residual

    def solve(self, ridge: float = 0.01) -> np.ndarray:
        """The change of the weight, float32 [out, in]; the ridge is a share of the inputs' mean square."""
        size = len(self._gram)
        ridge *= max(float(np.trace(self._gram)) / size, 1e-12)
        system = self._gram + ridge * np.eye(size)
        return np.linalg.solve(system, self._cross).T.astype(np.float32)

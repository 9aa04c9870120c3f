"""What calibration leaves of a linear's inputs: H = X^T X."""

from __future__ import annotations

import numpy as np

from edgellm.convert.rows import over_products
from edgellm.errors import NumericalError, UsageError

#: Rows of X whose products are summed in float32 before they enter the float64 sums.
_CHUNK_ROWS = 2048
#: Columns of H made at a time; a panel is small beside H, and only the upper triangle is computed.
_PANEL = 512


class Hessian:
    """Sums over calibration tokens for one input, which several linears may share (q/k/v, gate/up).

    Products are formed by BLAS in float32 over 2048 tokens and summed in float64; only the upper triangle is
    computed, its panels shared among threads. Memory: one float64 matrix [in, in], 2048 tokens, and for each thread a
    panel of 512 columns.

    Args:
        in_features: width of the input.
        name: of the linear or the buffer, for errors.
    """

    def __init__(self, in_features: int, name: str | None = None) -> None:
        if in_features < 1:
            raise UsageError("out of range", key="in_features", found=in_features, allowed="at least 1")
        self.in_features = in_features
        self.name = name
        self.count = 0
        self._sums = np.zeros((in_features, in_features), np.float64)
        self._mirrored = True
        self._held: np.ndarray | None = None  # tokens that wait for their chunk to be full
        self._waiting = 0

    def add(self, x: np.ndarray) -> None:
        """Take more tokens, x float32 [n, in].

        Raises:
            UsageError: x has another width.
            NumericalError: NaN, infinity or values whose squares overflow; nothing was added.
        """
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise UsageError("wrong shape", key=self.name, found=x.shape, allowed=f"[n, {self.in_features}]")
        x = np.asarray(x, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->j", x, x)
        if not np.isfinite(squares).all():
            channel = int(np.flatnonzero(~np.isfinite(squares))[0])
            raise NumericalError(
                f"the activations into it are NaN, infinite or beyond float32 in channel {channel}", key=self.name
            )
        self.count += len(x)
        while len(x):
            if self._held is None:
                self._held = np.empty((_CHUNK_ROWS, self.in_features), np.float32)
            taken = min(_CHUNK_ROWS - self._waiting, len(x))
            self._held[self._waiting : self._waiting + taken] = x[:taken]
            self._waiting += taken
            x = x[taken:]
            if self._waiting == _CHUNK_ROWS:
                self._sum_chunk()

    def _sum_chunk(self) -> None:
        """Let the tokens that wait enter the sums."""
        x = self._held[: self._waiting]

        def panel(a: int) -> None:
            b = min(a + _PANEL, self.in_features)
            own = x[:, a:b]
            self._sums[a:b, a:b] += own.T @ own  # the symmetric product, at half the price
            if b < self.in_features:
                self._sums[a:b, b:] += own.T @ x[:, b:]

        over_products(panel, range(0, self.in_features, _PANEL))
        self._waiting = 0
        self._mirrored = False

    def matrix(self) -> np.ndarray:
        """X^T X, float64 [in, in], symmetric: the sums themselves, not a copy."""
        if self._waiting:
            self._sum_chunk()
        self._held = None
        if not self._mirrored:
            for a in range(0, self.in_features, _PANEL):
                b = min(a + _PANEL, self.in_features)
                self._sums[b:, a:b] = self._sums[a:b, b:].T
            self._mirrored = True
        return self._sums


def output_error(difference: np.ndarray, hessian: np.ndarray) -> float:
    """sum((X D^T)**2) over all calibration tokens: what an error D float32 [out, in] of a weight does to its output.

    Divided by `output_error(weight, hessian)` it is the relative squared error of the layer's output.
    """
    total = 0.0
    for first in range(0, len(difference), _PANEL):
        rows = difference[first : first + _PANEL].astype(hessian.dtype)
        total += float(np.einsum("ij,ij->", rows @ hessian, rows))
    return max(0.0, total)

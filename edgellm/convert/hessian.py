"""What calibration leaves of a linear's inputs: H = X^T X and the mean absolute value of each channel."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from edgellm.errors import ModelError, NumericalError, UsageError

#: Rows of X whose products are summed in float32 before they enter the float64 sums.
_CHUNK_ROWS = 2048
#: Columns of H made at a time; a panel is small beside H, and only the upper triangle is computed.
_PANEL = 512


class Hessian:
    """Sums over calibration tokens for one input, which several linears may share (q/k/v, gate/up).

    Products are formed by BLAS in float32 over at most 2048 tokens and summed in float64; only the upper triangle is
    computed. Memory: one float64 matrix [in, in], and panels of 512 columns.

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
        self._absolute = np.zeros(in_features, np.float64)
        self._mirrored = True

    def add(self, x: np.ndarray) -> None:
        """Take more tokens, x float32 [n, in].

        Raises:
            UsageError: x has another width.
            NumericalError: NaN, infinity or values whose squares overflow; nothing was added.
        """
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise UsageError("wrong shape", key=self.name, found=x.shape, allowed=f"[n, {self.in_features}]")
        x = np.ascontiguousarray(x, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->j", x, x)
        if not np.isfinite(squares).all():
            channel = int(np.flatnonzero(~np.isfinite(squares))[0])
            raise NumericalError(
                f"the activations into it are NaN, infinite or beyond float32 in channel {channel}", key=self.name
            )
        for first in range(0, len(x), _CHUNK_ROWS):
            self._add_chunk(x[first : first + _CHUNK_ROWS])
        self.count += len(x)

    def _add_chunk(self, x: np.ndarray) -> None:
        self._mirrored = False
        self._absolute += np.abs(x).sum(axis=0, dtype=np.float64)
        for a in range(0, self.in_features, _PANEL):
            b = min(a + _PANEL, self.in_features)
            self._sums[a:b, a:] += x[:, a:b].T @ x[:, a:]

    def matrix(self) -> np.ndarray:
        """X^T X, float64 [in, in], symmetric: the sums themselves, not a copy."""
        if not self._mirrored:
            for a in range(0, self.in_features, _PANEL):
                b = min(a + _PANEL, self.in_features)
                self._sums[b:, a:b] = self._sums[a:b, b:].T
                corner = self._sums[a:b, a:b]
                corner[:] = np.triu(corner) + np.triu(corner, 1).T
            self._mirrored = True
        return self._sums

    @property
    def mean_abs(self) -> np.ndarray:
        """Mean |x| of each channel, float32 [in]; AWQ's measure of how much a channel matters."""
        return (self._absolute / max(1, self.count)).astype(np.float32)

    @property
    def mean_square(self) -> np.ndarray:
        """Mean x**2 of each channel, float32 [in]."""
        return (self._sums.diagonal() / max(1, self.count)).astype(np.float32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sums; the name is taken only when the file is whole. Raises OSError."""
        aside = Path(f"{os.fspath(path)}.partial-{os.getpid()}")
        try:
            with open(aside, "wb") as file:
                np.savez(file, sums=self.matrix(), absolute=self._absolute, count=np.int64(self.count))
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    @staticmethod
    def load(path: str | os.PathLike[str], name: str | None = None) -> Hessian:
        """What `save` wrote. Raises `ModelError` for a damaged file, OSError for one that is not there."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                sums, absolute, count = arrays["sums"], arrays["absolute"], int(arrays["count"])
        except (ValueError, KeyError, EOFError, TypeError) as error:
            raise ModelError("not a saved Hessian", file=path, found=error) from None
        except Exception as error:  # zipfile's own errors, which share no base
            if isinstance(error, OSError):
                raise
            raise ModelError("not a saved Hessian", file=path, found=error) from None
        shapes = (sums.shape, absolute.shape)
        if sums.ndim != 2 or shapes != ((len(absolute),) * 2, (len(absolute),)) or sums.dtype != np.float64:
            raise ModelError("not a saved Hessian", file=path, found=shapes)
        hessian = Hessian(1, name)
        hessian.in_features, hessian.count = len(absolute), count
        hessian._sums, hessian._absolute = sums, absolute
        return hessian


def output_error(difference: np.ndarray, hessian: np.ndarray) -> float:
    """sum((X D^T)**2) over all calibration tokens: what an error D float32 [out, in] of a weight does to its output.

    Divided by `output_error(weight, hessian)` it is the relative squared error of the layer's output.
    """
    total = 0.0
    for first in range(0, len(difference), _PANEL):
        rows = difference[first : first + _PANEL].astype(hessian.dtype)
        total += float(np.einsum("ij,ij->", rows @ hessian, rows))
    return max(0.0, total)

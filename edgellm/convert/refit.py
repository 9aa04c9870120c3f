"""Least squares after a cut: the inputs that stay take over what those that went had added.

With H = X^T X over the calibration tokens, kept inputs k and removed ones r, the weights over the kept inputs that come
nearest to the outputs of the whole are, exactly,

    W' = W H[:, k] (H[k, k])^-1 = W_k + W_r H[r, k] (H[k, k])^-1

A ridge keeps the inverse honest where inputs are nearly dependent. It pulls towards W_k, the weights as they are, not
towards 0: with nothing removed W' = W whatever the ridge.
"""

from __future__ import annotations

import numpy as np

from edgellm.errors import NumericalError, UsageError

DEFAULT_RIDGE = 0.01


def damped(hessian: np.ndarray, ridge: float) -> np.ndarray:
    """A float64 copy of `hessian` with `ridge` times its mean diagonal added to the diagonal."""
    return _damp(hessian.astype(np.float64), ridge)


def _damp(found: np.ndarray, ridge: float) -> np.ndarray:
    mean = float(found.diagonal().mean())
    found[np.diag_indices_from(found)] += ridge * mean if mean > 0 else 1.0
    return found


def refit(weight: np.ndarray, hessian: np.ndarray, keep: np.ndarray, ridge: float = DEFAULT_RIDGE) -> np.ndarray:
    """The weights over the inputs `keep` that best reproduce the outputs of all, float32 [out, kept].

    Memory: two float64 matrices [kept, kept].

    Args:
        weight: float32 [out, in].
        hessian: X^T X over the calibration tokens, float64 [in, in].
        keep: indexes of the inputs that stay, ascending.
        ridge: share of the mean diagonal of H[k, k] added to its diagonal, above 0.

    Raises:
        UsageError: shapes do not fit, nothing is kept, or the ridge is not above 0.
        NumericalError: H is NaN or infinite.
    """
    inputs = weight.shape[1]
    if hessian.shape != (inputs, inputs):
        raise UsageError("does not fit the weight", key="hessian", found=hessian.shape, allowed=f"[{inputs}, {inputs}]")
    if not len(keep):
        raise UsageError("nothing is kept", key="keep")
    if not ridge > 0:
        raise UsageError("out of range", key="ridge", found=ridge, allowed="above 0, such as 0.01")
    if not np.isfinite(hessian).all():
        raise NumericalError("a sum of calibration activations is NaN or infinite", key="hessian")
    removed = np.setdiff1d(np.arange(inputs), keep)
    kept = weight[:, keep].astype(np.float64)
    if len(removed):
        inner = _damp(hessian[np.ix_(keep, keep)].astype(np.float64, copy=False), ridge)  # indexing copied it
        across = hessian[np.ix_(keep, removed)] @ weight[:, removed].T.astype(np.float64)  # (kept, out)
        kept += np.linalg.solve(inner, across).T
    return kept.astype(np.float32)


def spread(columns: np.ndarray, keep: np.ndarray, inputs: int) -> np.ndarray:
    """`columns` [out, kept] at their places among `inputs`, zeros elsewhere: float32 [out, inputs]."""
    whole = np.zeros((len(columns), inputs), np.float32)
    whole[:, keep] = columns
    return whole

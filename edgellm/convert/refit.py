"""Least squares after a cut: the inputs that stay take over what those that went had added, and more where asked.

With inputs X of the linear, kept ones k, and the outputs T that it should give, the weights nearest to W_k that come
nearest to T are

    W' = W_k + (T^T X_k - W_k H_kk) (H_kk + ridge)^-1                 H = X^T X

T = X W^T, the outputs before the cut, gives W' = W_k + W_r H_rk (H_kk + ridge)^-1 for removed inputs r. T can also be
what the residual stream of the source lacks at this place, so that a linear makes up for cuts and whole layers that
went before it. The ridge pulls towards the weights as they are, not towards 0: where nothing is to be made up for,
W' = W_k whatever the ridge.
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


def refit(
    weight: np.ndarray,
    hessian: np.ndarray,
    keep: np.ndarray,
    ridge: float = DEFAULT_RIDGE,
    cross: np.ndarray | None = None,
) -> np.ndarray:
    """The weights over the inputs `keep` that best give the outputs wanted, float32 [out, kept].

    Memory: two float64 matrices [kept, kept].

    Args:
        weight: float32 [out, in].
        hessian: X^T X over the calibration tokens, float64 [in, in].
        keep: indexes of the inputs that stay, ascending.
        ridge: share of the mean diagonal of H[k, k] added to its diagonal, above 0.
        cross: X^T T, float64 [in, out]; None wants the outputs of `weight` over all inputs.

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
    if not np.isfinite(hessian).all() or (cross is not None and not np.isfinite(cross).all()):
        raise NumericalError("a sum of calibration activations is NaN or infinite", key="hessian")
    kept = weight[:, keep].astype(np.float64)
    lacking = _lacking(weight, hessian, keep, cross)
    if lacking is not None:
        # indexing copied the block, so that it can be damped where it is
        inner = _damp(hessian[np.ix_(keep, keep)].astype(np.float64, copy=False), ridge)
        kept += np.linalg.solve(inner, lacking).T
    return kept.astype(np.float32)


def _lacking(weight: np.ndarray, hessian: np.ndarray, keep: np.ndarray, cross: np.ndarray | None) -> np.ndarray | None:
    """X_k^T (T - X_k W_k^T), float64 [kept, out]; None where that is 0."""
    if cross is not None:
        return cross[keep] - hessian[np.ix_(keep, keep)] @ weight[:, keep].T.astype(np.float64)
    removed = np.setdiff1d(np.arange(weight.shape[1]), keep)
    return hessian[np.ix_(keep, removed)] @ weight[:, removed].T.astype(np.float64) if len(removed) else None


def spread(columns: np.ndarray, keep: np.ndarray, inputs: int) -> np.ndarray:
    """`columns` [out, kept] at their places among `inputs`, zeros elsewhere: float32 [out, inputs]."""
    whole = np.zeros((len(columns), inputs), np.float32)
    whole[:, keep] = columns
    return whole

"""AWQ's clip search: how far the range of each group may shrink so that the group's part of the output changes least.

A narrow range spoils the weights beyond it, a wide one spoils all others; which counts more depends on the inputs, so
the error is measured on them: for group g with inputs x_g, sum over tokens of ((w_rounded - w) . x_g)**2, which needs
the group's block of X^T X and nothing else.
"""

from __future__ import annotations

import numpy as np

from edgellm.convert import rtn
from edgellm.convert.rows import over_rows
from edgellm.convert.scheme import Scheme
from edgellm.errors import UsageError
from edgellm.formats.quantized import group_count

#: Ranges tried: 1, 0.95 ... 0.55 of the largest weight, as AWQ's own search does.
_STEPS = 10
_SHRINK = 0.05


def rounding_errors(
    weight: np.ndarray, scheme: Scheme, limits: np.ndarray | None = None, *, threads: int | None = None
) -> np.ndarray:
    """Rounded to nearest (search "minmax") minus original, float32 [out, in].

    Args:
        weight: float32 [out, in].
        scheme: bits, groups, sym.
        limits: float32 [out, groups], where the range of each group ends; None for no clipping.
    """
    from edgellm.convert import clip_kernel

    outputs, inputs = weight.shape
    width = scheme.group_width(inputs)
    limits = rtn.as_limits(limits, (outputs, group_count(inputs, width)))
    difference = np.empty_like(weight)

    def rows(first: int, last: int) -> None:
        clip_kernel.rounding_errors(
            weight, limits, width, rtn.top_code(scheme), scheme.sym, difference, first, last
        )  # fmt: skip

    over_rows(rows, outputs, threads)
    return difference


def search_clip(
    weight: np.ndarray,
    inputs: np.ndarray | None,
    scheme: Scheme,
    *,
    hessian: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """The largest |weight| that each group keeps, float32 [out, groups], for `quantize_rtn(limits=)` by "minmax".

    AWQ leaves q_proj and k_proj out: errors of their products are not those of their outputs. Memory: one float32 of
    the weight's size.

    Args:
        weight: float32 [out, in], AWQ's scales already multiplied in.
        inputs: float32 [n, in], a sample of what the linear sees, divided by these scales; or None with `hessian`.
        scheme: bits, groups, sym.
        hessian: X^T X [in, in] instead of `inputs`.

    Raises:
        UsageError: shapes do not fit, or not one of inputs and hessian.
        NumericalError: see `quantize_rtn`.
    """
    weight = rtn.as_weight(weight)
    width = scheme.group_width(weight.shape[1])
    grams = _group_grams(inputs, hessian, weight.shape[1], width)
    largest = group_maxima(weight, width)
    best = np.full(largest.shape, np.inf, np.float32)
    kept = largest.copy()
    for step in range(_STEPS):
        limits = largest * np.float32(1 - _SHRINK * step)
        difference = rounding_errors(weight, scheme, limits, threads=threads)
        for group, gram in enumerate(grams):
            part = difference[:, group * width : group * width + len(gram)]
            error = np.einsum("ij,ij->i", part @ gram, part)
            better = error < best[:, group]
            best[better, group] = error[better]
            kept[better, group] = limits[better, group]
    return kept


def group_maxima(weight: np.ndarray, width: int) -> np.ndarray:
    """max |weight| of every group, float32 [out, groups]."""
    starts = np.arange(0, weight.shape[1], width)
    return np.maximum(np.maximum.reduceat(weight, starts, axis=1), -np.minimum.reduceat(weight, starts, axis=1))


def _group_grams(
    inputs: np.ndarray | None, hessian: np.ndarray | None, in_features: int, width: int
) -> list[np.ndarray]:
    """X_g^T X_g of every group, float32 [width, width]; the last may be smaller."""
    if (inputs is None) == (hessian is None):
        raise UsageError("one of them is needed", key="inputs, hessian")
    source = inputs if hessian is None else hessian
    if source.ndim != 2 or source.shape[1] != in_features:
        raise UsageError("does not fit the weight", key="inputs, hessian", found=source.shape)
    spans = [slice(a, min(a + width, in_features)) for a in range(0, in_features, width)]
    if hessian is not None:
        return [np.ascontiguousarray(hessian[span, span], np.float32) for span in spans]
    return [np.ascontiguousarray(inputs[:, span].T @ inputs[:, span], np.float32) for span in spans]

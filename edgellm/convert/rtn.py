"""Round to nearest: every weight by itself, on a grid found from its group."""

from __future__ import annotations

import numpy as np

from edgellm.convert.rows import over_rows
from edgellm.convert.scheme import Scheme
from edgellm.errors import NumericalError, UsageError
from edgellm.formats.quantized import QuantizedTensor, group_count


def quantize_rtn(
    weight: np.ndarray,
    scheme: Scheme,
    importance: np.ndarray | None = None,
    *,
    limits: np.ndarray | None = None,
    threads: int | None = None,
) -> QuantizedTensor:
    """The weight in groups, rounded to nearest. Order (`desc_act`, `static_groups`) means nothing here.

    Args:
        weight: float32 [out, in].
        scheme: bits, groups and search.
        importance: float32 [in], at least 0: what a squared error on this input counts in a search (a Hessian's
            diagonal, mean squares of activations); None for 1.
        limits: float32 [out, groups], where the range of each group ends (`clip.search_clip`); None for no clipping.
        threads: None for all processors; the result does not depend on it.

    Raises:
        UsageError: shapes do not fit.
        NumericalError: a weight or an importance is NaN or infinite, or a scale is beyond float16.
    """
    weight = as_weight(weight)
    scales, zeros = find_grids(weight, scheme, importance, limits=limits, threads=threads)
    return encode(weight, scales, zeros, scheme, threads=threads)


def find_grids(
    weight: np.ndarray,
    scheme: Scheme,
    importance: np.ndarray | None = None,
    *,
    limits: np.ndarray | None = None,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(scales, zeros), both float32 [out, groups] and exact in float16. Arguments and errors: see `quantize_rtn`."""
    from edgellm.convert import group_kernel

    outputs, inputs = weight.shape
    width = scheme.group_width(inputs)
    weigh = as_importance(importance, inputs)
    scales = np.empty((outputs, group_count(inputs, width)), np.float32)
    zeros = np.empty_like(scales)
    limits = as_limits(limits, scales.shape)
    top, steps = top_code(scheme), search_steps(scheme)

    def rows(first: int, last: int) -> None:
        group_kernel.find_grids(weight, weigh, limits, width, top, scheme.sym, steps, scales, zeros, first, last)

    over_rows(rows, outputs, threads)
    return scales, zeros


def encode(
    weight: np.ndarray, scales: np.ndarray, zeros: np.ndarray, scheme: Scheme, *, threads: int | None = None
) -> QuantizedTensor:
    """The weight rounded on given grids. Raises `NumericalError` where a scale is beyond float16."""
    from edgellm.convert import group_kernel

    outputs, inputs = weight.shape
    width = scheme.group_width(inputs)
    codes = np.empty(weight.shape, np.uint8)
    top = top_code(scheme)

    def rows(first: int, last: int) -> None:
        group_kernel.encode_rows(weight, width, top, scales, zeros, codes, first, last)

    over_rows(rows, outputs, threads)
    return canonical(codes, scales, zeros, scheme)


def canonical(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, scheme: Scheme, permutation: np.ndarray | None = None
) -> QuantizedTensor:
    """The kernels' float32 grids as a `QuantizedTensor`. Raises `NumericalError` where a scale is beyond float16."""
    if scales.size and not scales.max() <= np.finfo(np.float16).max:
        raise NumericalError(
            "a scale is beyond float16", key="scales", found=float(scales.max()), hint="The weights are damaged."
        )
    width = scheme.group_width(codes.shape[1])
    return QuantizedTensor(codes, scales.astype(np.float16), zeros.astype(np.int16), scheme.bits, width, permutation)


def top_code(scheme: Scheme) -> float:
    """The largest code."""
    return float((1 << scheme.bits) - 1)


def search_steps(scheme: Scheme) -> int:
    """How many ranges a group's search tries."""
    from edgellm.convert import group_kernel

    return group_kernel.SEARCH_STEPS if scheme.search == "mse" else 1


def as_weight(weight: np.ndarray) -> np.ndarray:
    """float32 [out, in], C-contiguous and finite. Raises `UsageError`, `NumericalError`."""
    if weight.ndim != 2 or not weight.size:
        raise UsageError("not a matrix", key="weight", found=weight.shape, allowed="[out, in]")
    weight = np.ascontiguousarray(weight, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(weight.sum(dtype=np.float32))
    if not finite:
        raise NumericalError("a weight is NaN or infinite", key="weight")
    return weight


def as_importance(importance: np.ndarray | None, inputs: int) -> np.ndarray:
    """float32 [in], ones for None. Raises `UsageError`, `NumericalError`."""
    if importance is None:
        return np.ones(inputs, np.float32)
    if importance.shape != (inputs,):
        raise UsageError("does not fit the weight", key="importance", found=importance.shape, allowed=f"[{inputs}]")
    if not np.isfinite(importance).all():
        raise NumericalError("NaN or infinite", key="importance")
    return np.ascontiguousarray(importance, np.float32)


def as_limits(limits: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray:
    """float32 [out, groups], infinity for None. Raises `UsageError`."""
    if limits is None:
        return np.full(shape, np.inf, np.float32)
    if limits.shape != shape:
        raise UsageError("do not fit the weight's groups", key="limits", found=limits.shape, allowed=str(list(shape)))
    return np.ascontiguousarray(limits, np.float32)

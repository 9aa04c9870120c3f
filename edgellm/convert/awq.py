"""AWQ's scale search (Lin et al. 2023, arXiv:2306.00978): channels that see large inputs are made finer.

The input of a group of linears is divided by s and their columns are multiplied by s, which changes nothing before
rounding; columns with large s then lose less. s = mean|x|**ratio, the ratio searched for the least error of the
outputs. Who divides the input is `awq_fold`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgellm.convert import rtn
from edgellm.convert.awq_fold import Fold
from edgellm.convert.clip import group_maxima, rounding_errors
from edgellm.convert.scheme import Scheme
from edgellm.errors import NumericalError, UsageError

#: Ratios tried: 0, 0.05 ... 0.95.
_RATIOS = 20
_SMALLEST = 1e-4


@dataclass(frozen=True, eq=False)
class AwqScales:
    """What a search found.

    Attributes:
        scales: float32 [in], for the columns of the linears; ones where nothing was better.
        ratio: exponent of mean|x|.
        duo: whether the weights' own size took part.
        loss: summed squared error of the linears' outputs over the sample.
        loss_unscaled: the same for scales of one: round to nearest.
    """

    scales: np.ndarray
    ratio: float
    duo: bool
    loss: float
    loss_unscaled: float


def search_scales(
    weights: Sequence[np.ndarray],
    mean_abs: np.ndarray,
    inputs: np.ndarray | None,
    scheme: Scheme,
    *,
    hessian: np.ndarray | None = None,
    fold: Fold | None = None,
    duo_scaling: bool = True,
    threads: int | None = None,
) -> AwqScales:
    """Scales for one group of linears that read the same input.

    Args:
        weights: float32 [out_i, in] each.
        mean_abs: float32 [in], mean |x| of each channel over the calibration tokens.
        inputs: float32 [n, in], a sample of the input (some hundred tokens do); or None with `hessian`.
        scheme: bits, groups, sym; grids are found by "minmax".
        hessian: X^T X [in, in] instead of `inputs`; dearer where in is above n.
        fold: where the scales will go; channels that share a divisor (value heads read by several query heads) then
            get equal scales.
        duo_scaling: try s = mean|x|**ratio / mean|w|**(1 - ratio) too, |w| relative to its group's largest, as
            AutoAWQ does.
        threads: for rounding; BLAS has its own.

    Raises:
        UsageError: shapes do not fit, or not one of inputs and hessian.
        NumericalError: NaN or infinity in weights, statistics or inputs.
    """
    weights = [rtn.as_weight(weight) for weight in weights]
    width = weights[0].shape[1]
    second = _second_factor(inputs, hessian, width)
    if mean_abs.shape != (width,) or any(weight.shape[1] != width for weight in weights):
        raise UsageError("does not fit the weights", key="mean_abs", found=mean_abs.shape, allowed=f"[{width}]")
    if not np.isfinite(mean_abs).all():
        raise NumericalError("NaN or infinite", key="mean_abs")
    ones = np.ones(width, np.float32)
    unscaled = _loss(weights, ones, second, hessian is not None, scheme, threads)
    best = AwqScales(ones, 0.0, False, unscaled, unscaled)
    sizes = _relative_sizes(weights, scheme) if duo_scaling else None
    for duo in (False, True) if duo_scaling else (False,):
        for step in range(_RATIOS):
            ratio = step / _RATIOS
            if not duo and step == 0:
                continue  # scales of one, judged above
            scales = _scales(mean_abs, sizes if duo else None, ratio, fold)
            loss = _loss(weights, scales, second, hessian is not None, scheme, threads)
            if loss < best.loss:
                best = AwqScales(scales, ratio, duo, loss, unscaled)
    if not np.isfinite(unscaled):
        raise NumericalError("the outputs are NaN or infinite", key="inputs")
    return best


def _scales(mean_abs: np.ndarray, sizes: np.ndarray | None, ratio: float, fold: Fold | None) -> np.ndarray:
    """float32 [in], the geometric middle of its range at 1."""
    scales = np.maximum(mean_abs.astype(np.float64) ** ratio, _SMALLEST)
    if sizes is not None:
        scales = np.maximum(scales / (sizes ** (1 - ratio) + _SMALLEST), _SMALLEST)
    if fold is not None:
        scales = fold.tied(scales)
    return (scales / np.sqrt(scales.max() * scales.min())).astype(np.float32)


def _relative_sizes(weights: Sequence[np.ndarray], scheme: Scheme) -> np.ndarray:
    """Mean over all rows of |w| / the largest |w| of its group, float64 [in]."""
    inputs = weights[0].shape[1]
    width = scheme.group_width(inputs)
    total = np.zeros(inputs, np.float64)
    for weight in weights:
        largest = np.maximum(group_maxima(weight, width), np.finfo(np.float32).tiny)
        spread = np.repeat(1 / largest, width, axis=1)[:, :inputs]
        total += (np.abs(weight) * spread).sum(axis=0, dtype=np.float64)
    return total / sum(len(weight) for weight in weights)


def _loss(
    weights: Sequence[np.ndarray], scales: np.ndarray, second: np.ndarray, is_hessian: bool, scheme: Scheme,
    threads: int | None,
) -> float:  # fmt: skip
    """Squared error of the outputs: sum |X D^T|**2, or tr(D H D^T)."""
    total = 0.0
    inverse = 1 / scales
    for weight in weights:
        difference = rounding_errors(weight * scales, scheme, threads=threads)
        difference *= inverse
        product = difference @ second
        other = difference if is_hessian else product
        total += float(np.einsum("ij,ij->", product, other, dtype=np.float64))
    return total


def _second_factor(inputs: np.ndarray | None, hessian: np.ndarray | None, width: int) -> np.ndarray:
    """What an error is multiplied with: X^T float32 [in, n], or H float32 [in, in]; the smaller one."""
    if (inputs is None) == (hessian is None):
        raise UsageError("one of them is needed", key="inputs, hessian")
    source = inputs if hessian is None else hessian
    if source.ndim != 2 or source.shape[1] != width:
        raise UsageError("does not fit the weights", key="inputs, hessian", found=source.shape, allowed=f"[n, {width}]")
    source = np.ascontiguousarray(source, np.float32)
    return source.T if hessian is None else source

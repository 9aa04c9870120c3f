"""GPTQ (Frantar et al. 2023, arXiv:2210.17323): columns rounded one by one, the rest moved to make up for the error.

Given a column's rounding, the change of the columns after it that least disturbs the layer's outputs on the calibration
tokens has a closed form in the inverse Hessian. The Hessian is shared by linears with the same input, and so is its
factor: make one `Factor` and quantize them all with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from edgellm.convert import rtn
from edgellm.convert.inverse import invert_to_factor
from edgellm.convert.rows import over_products
from edgellm.convert.scheme import Scheme
from edgellm.errors import NumericalError, UsageError
from edgellm.formats.quantized import QuantizedTensor, group_count

_DAMP_STEP = 10.0
_MAX_DAMP = 1e3
#: Columns, about, that what stands before them changes in one product.
_SPAN = 512
#: Rows of a thread's turn. What they become does not depend on who else has a turn.
_ROWS = 256


@dataclass(frozen=True)
class GptqResult:
    """A quantized linear.

    Attributes:
        tensor: codes and grids.
        loss: tr(D H D^T) for the error D that is left, with the damped H: the squared error of the outputs summed
            over calibration tokens, and a little more for dampening.
        damp_percent_used: what the factorization took, at least what was asked.
    """

    tensor: QuantizedTensor
    loss: float
    damp_percent_used: float


@dataclass(frozen=True, eq=False)
class Factor:
    """A Hessian made ready for quantizing.

    Attributes:
        upper: float64 [in, in], U of (H + damp)^-1 = U^T U, columns in `order`; below the diagonal anything.
        order: int32 [in], column j of U is input order[j]; None where inputs keep their order.
        dead: bool [in], inputs that calibration never saw different from 0; their weights become 0.
        diagonal: float32 [in], of H, what an input counts in a search; in the order of the inputs.
        damp_percent: the dampening used, a share of the mean diagonal.
    """

    upper: np.ndarray
    order: np.ndarray | None
    dead: np.ndarray
    diagonal: np.ndarray
    damp_percent: float


def factor_hessian(hessian: np.ndarray, *, desc_act: bool = False, damp_percent: float = 0.01) -> Factor:
    """The factor of a Hessian, float32 or float64 [in, in], which is left as it is.

    Dampening grows tenfold until the matrix factors. Memory: one float64 matrix [in, in] beside the Hessian.

    Raises:
        UsageError: not square, or damp_percent not above 0.
        NumericalError: NaN, infinite, not a sum of squares, or no dampening below 1000 helps.
    """
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1]:
        raise UsageError("not square", key="hessian", found=hessian.shape, allowed="[in, in]")
    if not 0 < damp_percent <= _MAX_DAMP:
        raise UsageError("out of range", key="damp_percent", found=damp_percent, allowed="above 0, such as 0.01")
    diagonal = hessian.diagonal().astype(np.float64)
    if not np.isfinite(diagonal).all() or (diagonal < 0).any():
        raise NumericalError("its diagonal is NaN, infinite or negative", key="hessian")
    dead = diagonal == 0
    alive = np.where(dead, 1.0, diagonal)
    order = np.argsort(-diagonal, kind="stable").astype(np.int32) if desc_act else None
    mean = float(alive.mean())
    damp = damp_percent
    while damp <= _MAX_DAMP:
        h = hessian.astype(np.float64) if order is None else _reordered(hessian, order)
        kept = alive if order is None else alive[order]
        np.fill_diagonal(h, kept + damp * mean)
        try:
            upper = invert_to_factor(h)
            return Factor(upper, order, dead, diagonal.astype(np.float32), damp)
        except np.linalg.LinAlgError:
            damp *= _DAMP_STEP
    raise NumericalError("cannot be factored with any dampening", key="hessian", found=f"damp_percent {damp:g}")


def quantize_gptq(
    weight: np.ndarray,
    hessian: np.ndarray | Factor,
    scheme: Scheme,
    *,
    damp_percent: float = 0.01,
    block_size: int = 128,
    threads: int | None = None,
) -> GptqResult:
    """Quantize one linear.

    Memory beside the arguments: the weight once more in float32, codes, 512 columns of the factor, and one float64
    [in, in] unless a `Factor` is given.

    Args:
        weight: float32 [out, in].
        hessian: X^T X over the calibration tokens [in, in] in any scale, or its factor; a factor must have been made
            with the scheme's `desc_act`.
        scheme: see `Scheme`.
        damp_percent: share of the mean diagonal that is added to the diagonal.
        block_size: columns between updates of the rest; it changes the speed, and results only by rounding.
        threads: None for as many as BLAS has; the result does not depend on it.

    Raises:
        UsageError: shapes or options do not fit.
        NumericalError: see `factor_hessian` and `quantize_rtn`.
    """
    weight = rtn.as_weight(weight)
    inputs = weight.shape[1]
    if not isinstance(hessian, Factor):
        hessian = factor_hessian(hessian, desc_act=scheme.desc_act, damp_percent=damp_percent)
    if hessian.upper.shape != (inputs, inputs) or (hessian.order is not None) != scheme.desc_act:
        found = f"{hessian.upper.shape}, {'ordered' if hessian.order is not None else 'not ordered'}"
        raise UsageError("does not fit weight and scheme", key="hessian", found=found, allowed=f"[{inputs}, {inputs}]")
    width = scheme.group_width(inputs)
    if block_size < 1 or (width < inputs and block_size % width and width % block_size):
        raise UsageError("must divide the group or hold whole ones", key="block_size", found=block_size)
    return _Quantization(weight, hessian, scheme, threads).run(block_size)


class _Quantization:
    """One weight on its way: columns in the factor's order, updated as blocks are done."""

    def __init__(self, weight: np.ndarray, factor: Factor, scheme: Scheme, threads: int | None) -> None:
        inputs = weight.shape[1]
        self.factor, self.scheme, self.threads = factor, scheme, threads
        self.width = scheme.group_width(inputs)
        self.order = np.arange(inputs, dtype=np.int32) if factor.order is None else factor.order
        self.given = scheme.static_groups
        alive = weight
        if factor.dead.any():
            alive = np.where(factor.dead, np.float32(0), weight)
        if self.given:
            self.scales, self.zeros = rtn.find_grids(alive, scheme, factor.diagonal, threads=threads)
            self.groups = (self.order // self.width).astype(np.int32)
        else:
            self.scales = np.empty((len(weight), group_count(inputs, self.width)), np.float32)
            self.zeros = np.empty_like(self.scales)
            self.groups = (np.arange(inputs) // self.width).astype(np.int32)
        self.importance = np.ascontiguousarray(factor.diagonal[self.order])
        self.weight = np.take(alive, self.order, axis=1)  # a copy, in any case
        self.codes = np.empty(weight.shape, np.uint8)
        self.losses = np.zeros(len(weight), np.float64)

    def run(self, block_size: int) -> GptqResult:
        inputs = self.weight.shape[1]
        whole = max(block_size, self.width if self.width < inputs else 1)  # groups do not cross spans
        width = whole * max(_SPAN // whole, 1)
        turns = [slice(a, a + _ROWS) for a in range(0, len(self.weight), _ROWS)]
        for start in range(0, inputs, width):
            span = slice(start, min(start + width, inputs))
            upper = self.factor.upper[: span.stop, span].astype(np.float32)
            over_products(partial(self._rows, span=span, upper=upper, block_size=block_size), turns, self.threads)
        codes, permutation = self.codes, self.factor.order
        if permutation is not None and (self.given or self.width >= codes.shape[1]):
            codes = np.empty_like(self.codes)  # groups are those of the inputs, so the order leaves no trace
            codes[:, permutation] = self.codes
            permutation = None
        elif permutation is not None and np.array_equal(permutation, np.arange(len(permutation))):
            permutation = None
        tensor = rtn.canonical(codes, self.scales, self.zeros, self.scheme, permutation)
        return GptqResult(tensor, float(self.losses.sum()), self.factor.damp_percent)

    def _rows(self, rows: slice, span: slice, upper: np.ndarray, block_size: int) -> None:
        """Some rows of a span of columns; `upper` float32 [span.stop, columns], of the factor.

        Columns before the span hold errors by now, and so will these.
        """
        from edgellm.convert import gptq_kernel

        weight = self.weight[rows]
        if span.start:
            weight[:, span] -= weight[:, : span.start] @ upper[: span.start]
        own = upper[span.start :]  # [columns, columns]
        steps, top = rtn.search_steps(self.scheme), rtn.top_code(self.scheme)
        for a in range(0, len(own), block_size):
            b = min(a + block_size, len(own))
            start, stop = span.start + a, span.start + b
            gptq_kernel.quantize_block(
                weight, start, np.ascontiguousarray(own[a:b, a:b]), self.losses[rows], self.importance, self.groups,
                self.width, self.given, top, self.scheme.sym, steps, self.scales[rows], self.zeros[rows],
                self.codes[rows],
            )  # fmt: skip
            if b < len(own):
                weight[:, stop : span.stop] -= weight[:, start:stop] @ own[a:b, b:]


def _reordered(hessian: np.ndarray, order: np.ndarray) -> np.ndarray:
    """H[order][:, order] as float64, row by row: no second whole copy."""
    h = np.empty(hessian.shape, np.float64)
    for row, source in enumerate(order):
        h[row] = hessian[source, order]
    return h

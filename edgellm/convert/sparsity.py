"""Unstructured and 2:4 sparsity, for research: weights become zero, and nothing runs faster or gets smaller by it.

Edgellm has no sparse kernels, on purpose (structured pruning shrinks what runs); these are here to compare with papers.

    magnitude  the least |W| of each row go
    wanda      the least |W_ij| |x_j| of each row go (arXiv:2306.11695)
    sparsegpt  columns one after the other, the least W_ij^2 / [U_jj]^2 of a block of columns go, and the weights that
               are not decided yet make up for each zero (arXiv:2301.00774, with GPTQ's factor H^-1 = U^T U)

2:4 keeps the two best of each four neighbours in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgellm.convert.inverse import invert_to_factor
from edgellm.convert.refit import damped
from edgellm.errors import UsageError

METHODS = ("magnitude", "wanda", "sparsegpt")


@dataclass(frozen=True)
class Sparsity:
    """How many weights become zero.

    Attributes:
        method: see above.
        share: of each row (of each block of columns for sparsegpt) that goes, above 0 and below 1.
        pattern: None, or (kept, of): (2, 4) keeps 2 of each 4 neighbours; the share is then what follows from it.
        block_size: columns that sparsegpt decides together.
        damp_percent: added to the diagonal of H before it is inverted, a share of its mean.
    """

    method: str = "sparsegpt"
    share: float = 0.5
    pattern: tuple[int, int] | None = None
    block_size: int = 128
    damp_percent: float = 0.01

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError("no such method", key="sparsity.method", found=self.method, allowed=", ".join(METHODS))
        if not 0 < self.share < 1:
            raise UsageError("out of range", key="sparsity.share", found=self.share, allowed="above 0, below 1")
        if self.pattern is not None and not 0 < self.pattern[0] < self.pattern[1]:
            raise UsageError("not a pattern", key="sparsity.pattern", found=self.pattern, allowed="(2, 4) and the like")
        if self.block_size < 1 or (self.pattern is not None and self.block_size % self.pattern[1]):
            raise UsageError("must hold whole patterns", key="sparsity.block_size", found=self.block_size)


def sparsify(weight: np.ndarray, hessian: np.ndarray | None, sparsity: Sparsity) -> np.ndarray:
    """A float32 copy of `weight` [out, in] with zeros.

    Args:
        weight: float32 [out, in].
        hessian: X^T X over the calibration tokens [in, in], float64; "magnitude" needs none.
        sparsity: how.

    Raises:
        UsageError: shapes do not fit, or there is no Hessian where one is needed.
        numpy.linalg.LinAlgError: H is not positive definite even with its dampening.
    """
    inputs = weight.shape[1]
    if sparsity.pattern is not None and inputs % sparsity.pattern[1]:
        raise UsageError("columns do not divide by the pattern", key="weight", found=inputs)
    if sparsity.method == "magnitude":
        return np.where(_keep(np.abs(weight), sparsity), weight, np.float32(0))
    if hessian is None or hessian.shape != (inputs, inputs):
        found = None if hessian is None else hessian.shape
        raise UsageError("does not fit the weight", key="hessian", found=found, allowed=f"[{inputs}, {inputs}]")
    if sparsity.method == "wanda":
        scores = np.abs(weight) * np.sqrt(hessian.diagonal()).astype(np.float32)
        return np.where(_keep(scores, sparsity), weight, np.float32(0))
    return _sparsegpt(weight, hessian, sparsity)


def _keep(scores: np.ndarray, sparsity: Sparsity) -> np.ndarray:
    """Which of `scores` [out, in] are among the best of their row, or of their run of neighbours: bool."""
    rows, inputs = scores.shape
    kept, of = sparsity.pattern or (inputs - round(sparsity.share * inputs), inputs)
    runs = scores.reshape(rows, -1, of)
    order = np.argsort(-runs, axis=2, kind="stable")
    keep = np.zeros(runs.shape, bool)
    np.put_along_axis(keep, order[:, :, :kept], True, axis=2)
    return keep.reshape(rows, inputs)


def _sparsegpt(weight: np.ndarray, hessian: np.ndarray, sparsity: Sparsity) -> np.ndarray:
    inputs = weight.shape[1]
    upper = np.triu(invert_to_factor(damped(hessian, sparsity.damp_percent)))
    dead = hessian.diagonal() == 0
    work = weight.astype(np.float64)
    work[:, dead] = 0
    for start in range(0, inputs, sparsity.block_size):
        stop = min(start + sparsity.block_size, inputs)
        _decide_block(work, upper, start, stop, sparsity)
    return work.astype(np.float32)


def _decide_block(work: np.ndarray, upper: np.ndarray, start: int, stop: int, sparsity: Sparsity) -> None:
    """Columns start..stop-1 of `work` get their zeros, in place, and the columns behind make up for them."""
    diagonal = upper.diagonal()
    errors = np.zeros((len(work), stop - start))
    mask = None if sparsity.pattern else _least(np.square(work[:, start:stop] / diagonal[start:stop]), sparsity.share)
    of = sparsity.pattern[1] if sparsity.pattern else stop - start
    for column in range(start, stop):
        if sparsity.pattern and (column - start) % of == 0:
            scores = np.square(work[:, column : column + of] / diagonal[column : column + of])
            run = ~_keep(scores, sparsity)
            mask = run if column == start else np.concatenate([mask, run], axis=1)
        error = np.where(mask[:, column - start], work[:, column], 0.0) / diagonal[column]
        work[:, column:stop] -= error[:, None] * upper[column, column:stop]
        work[mask[:, column - start], column] = 0.0
        errors[:, column - start] = error
    work[:, stop:] -= errors @ upper[start:stop, stop:]


def _least(scores: np.ndarray, share: float) -> np.ndarray:
    """The least `share` of all scores of a block, over its rows together as the paper has it: bool."""
    count = round(share * scores.size)
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(scores, axis=None, kind="stable")[:count]] = True
    return mask.reshape(scores.shape)

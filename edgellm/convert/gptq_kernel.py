"""GPTQ's inner loop: the columns of one block, one after the other, for a range of rows.

    e = (w[j] - rounded w[j]) / U[j, j],   w[k] -= e * U[j, k] for k > j        (arXiv:2210.17323, equations 2 and 3)

Rows are independent. Errors stand in the weight's place once a column is done: what they do to the columns after the
block is one matrix product. Work: out * block**2 / 2 multiply-adds; bytes moved: the block's columns, once.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import boolean, float32, float64, int32, int64, types, void

from edgellm.convert.group_kernel import CODES_OUT, FLOATS, FLOATS_OUT, VECTOR, best_grid, encode

_INDICES = types.Array(int32, 1, "C", readonly=True)
_LOSSES = types.Array(float64, 1, "C")
_UNLIMITED = np.float32(np.inf)
_SIGNATURE = void(
    FLOATS_OUT, int64, FLOATS, _LOSSES,
    VECTOR, _INDICES, int64, boolean, float32, boolean, int64,
    FLOATS_OUT, FLOATS_OUT, CODES_OUT,
)  # fmt: skip


@numba.njit(nogil=True, fastmath={"nsz", "contract"})
def _subtract(row: np.ndarray, factor_row: np.ndarray, error: float) -> None:
    for k in range(len(row)):
        row[k] -= error * factor_row[k]


@numba.njit([_SIGNATURE], nogil=True)
def quantize_block(
    weight: np.ndarray,  # [out, in], columns from `start` on up to date; the block's become errors e
    start: int,  # first column of the block
    factor: np.ndarray,  # [b, b], the block of U
    losses: np.ndarray,  # [out], the squared errors e are added
    importance: np.ndarray,  # [in], for the search
    groups: np.ndarray,  # [in], the group of each column
    group_size: int,
    given: bool,  # scales and zeros are given; else they are found where a group is entered
    top: float,
    sym: bool,
    steps: int,
    scales: np.ndarray,  # [out, groups]
    zeros: np.ndarray,  # [out, groups]
    codes: np.ndarray,  # [out, in], written
) -> None:
    inputs, block = weight.shape[1], len(factor)
    for row in range(len(weight)):
        loss = 0.0
        for j in range(block):
            column = start + j
            group = groups[column]
            if not given and column % group_size == 0:
                end = min(column + group_size, inputs)
                scales[row, group], zeros[row, group] = best_grid(
                    weight[row, column:end], importance[column:end], _UNLIMITED, top, sym, steps
                )
            scale, zero = scales[row, group], zeros[row, group]
            one = weight[row, column : column + 1]
            encode(one, scale, zero, top, codes[row, column : column + 1])
            error = (one[0] - scale * (np.float32(codes[row, column]) - zero)) / factor[j, j]
            weight[row, column] = error
            loss += error * error
            _subtract(weight[row, column + 1 : start + block], factor[j, j + 1 :], error)
        losses[row] += loss

"""Permuted activations for the prefill GEMM."""

from __future__ import annotations

import numpy as np

from edgellm.backends.cuda.kernels.record import COUNT, RECORD_WORDS
from tests.backends.cuda.launching import launch
from tests.backends.cuda.weights import nmse


def test_rows_are_gathered_and_scaled() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 304)).astype(np.float32) * np.array([[1e-20], [1.0], [1e20]], np.float32)
    order = rng.permutation(300).astype(np.uint32)
    record = np.zeros(RECORD_WORDS, np.uint32)
    record[COUNT] = 2
    out, scales = np.full((3, 300), 0x7E00, np.uint16), np.full(3, np.nan, np.float32)
    given = {"record": record, "stride": 304, "width": 300, "step": 0}
    launch("gather_float16", (3,), {"x": x, "order": order, "out": out, "scales": scales, **given}, capability=75)
    found = out.view(np.float16).astype(np.float64) * scales[:, None]
    for row in range(2):
        assert nmse(found[row], x[row, order]) < 1e-7
    assert (out[2] == 0x7E00).all()  # beyond the record's tokens

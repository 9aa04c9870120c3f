"""Weights for the tests of linear layers, and what they must give."""

from __future__ import annotations

import numpy as np

from edgellm.formats import QuantizedTensor


def random_weight(
    rows: int,
    inputs: int,
    bits: int,
    group_size: int,
    *,
    symmetric: bool = False,
    permuted: bool = False,
    seed: int = 0,
) -> QuantizedTensor:
    """Random codes, scales and zero points over their whole range."""
    rng = np.random.default_rng((seed, rows, inputs, bits, group_size))
    groups = (rows, -(-inputs // group_size))
    scales = (rng.random(groups) * 0.02 + 0.001).astype(np.float16)
    zeros = rng.integers(0, (1 << bits) + 1, groups).astype(np.int16)
    if symmetric:
        zeros[:] = 1 << (bits - 1)
    codes = rng.integers(0, 1 << bits, (rows, inputs), dtype=np.uint8)
    permutation = rng.permutation(inputs).astype(np.int32) if permuted else None
    return QuantizedTensor(codes, scales, zeros, bits, group_size, permutation)


def nmse(found: np.ndarray, expected: np.ndarray) -> float:
    """Squared error over squared size."""
    difference = found.astype(np.float64) - expected
    return float((difference**2).sum() / max((expected.astype(np.float64) ** 2).sum(), 1e-300))

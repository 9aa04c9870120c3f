"""Random weights for the tests of packing and matmuls, and what a kernel's result is measured by."""

from __future__ import annotations

import numpy as np

from edgellm.formats import QuantizedTensor
from edgellm.formats.quantized import group_count


def quantized(
    rng: np.random.Generator,
    rows: int,
    inputs: int,
    bits: int,
    group_size: int,
    symmetric: bool,
    scale: float = 1e-2,
) -> QuantizedTensor:
    """Codes of the whole range; float32 scales where they are too small for float16."""
    group_size = min(group_size, inputs)
    shape = rows, group_count(inputs, group_size)
    codes = rng.integers(0, 1 << bits, (rows, inputs), np.uint8)
    scales = (scale * rng.uniform(0.5, 2, shape)).astype(np.float16 if scale > 1e-4 else np.float32)
    if scales.dtype == np.float32:  # as bfloat16 stores them
        scales = (scales.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    zeros = np.full(shape, 1 << bits - 1) if symmetric else rng.integers(0, (1 << bits) + 1, shape)
    return QuantizedTensor(codes, scales, zeros.astype(np.int16), bits, group_size)


def nmse(found: np.ndarray, expected: np.ndarray) -> float:
    """Squared error over squared norm, in float64."""
    expected = np.asarray(expected, np.float64)
    return float(np.square(found - expected).sum() / np.square(expected).sum())

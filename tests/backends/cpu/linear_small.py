"""A small table of linears for processes of their own: other instruction sets, no JIT. Prints the worst nmses."""

from __future__ import annotations

import json

import numpy as np

from edgellm.simd.target import TARGET
from tests.backends.cpu.linears import Linear, nmse, random_weight


def results() -> dict[str, float]:
    """The worst nmse by case; that of an embedding is 0 or infinity, for equal or not."""
    rng = np.random.default_rng(5)
    dense = rng.standard_normal((19, 21)).astype(np.float32)
    linears = {
        "int4": Linear(random_weight(19, 40, 4, 16, permuted=True), bias=rng.standard_normal(19)),
        "int4 in odd groups": Linear(random_weight(18, 100, 4, 100)),  # 7 of 16: half a line with 128-bit vectors
        "int8": Linear(random_weight(19, 40, 8, 32, symmetric=True)),
        "rounded": Linear(dense, 8),
        "f16": Linear(dense, 16),
    }
    found = {}
    for name, linear in linears.items():
        inputs = linear.layout.inputs
        worst = 0.0
        for tokens, planes, nth in ((1, 1, 1), (3, 2, 2), (9, 1, 3)):
            x = rng.standard_normal((tokens, inputs)).astype(np.float32)
            worst = max(worst, nmse(linear.run(x, planes, nth), linear.expected(x, planes)))
        rows = linear.layout.rows
        before = rng.standard_normal((2, rows)).astype(np.float32)
        x = rng.standard_normal((2, inputs)).astype(np.float32)
        added = before + 0.5 * linear.expected(x)
        found[name] = max(worst, nmse(linear.run(x, before=before, multiplier=0.5), added))
        if name != "int4":  # an embedding has no permutation
            ids = np.array([0, rows - 1, 7], np.int32)
            exact = np.array_equal(linear.rows_of(ids, 2), linear.dense[ids] * np.float32(0.5))
            found[f"embed {name}"] = 0.0 if exact else float("inf")
    return found


if __name__ == "__main__":
    print(json.dumps({"isa": TARGET.isa, "results": results()}))

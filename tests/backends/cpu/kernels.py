"""What the tests of kernels share: every thread's part one after the other, and how far two arrays are apart."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba.core import config

from edgellm.simd import TARGET
from tests.ahead import Process

#: Kernels run as plain Python, a thousand times slower: tests take their smallest cases.
WITHOUT_JIT = bool(config.DISABLE_JIT)
THREADS = (1, 2, 3, 7)


def run_parts(op: Callable[..., Any], *args: Any, nth: int) -> None:
    """Call `op(*args, ith, nth)` for every ith: what a team computes, in one thread."""
    for ith in range(nth):
        op(*args, ith, nth)


def nmse(found: np.ndarray, expected: np.ndarray) -> float:
    """Squared error over the square of the expected values."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.sum((found - expected) ** 2) / max(np.sum(expected**2), 1e-30))


def cases(*all_cases: Any, small: int = 2) -> list[Any]:
    """All cases, or the first `small` where the JIT is off."""
    return list(all_cases[:small]) if WITHOUT_JIT else list(all_cases)


def elsewhere(*arguments: str) -> list[Any]:
    """Parameters ISA and `process`: `python ARGUMENTS` without the JIT, and for each ISA that is not this process's.

    None where this is such a process.
    """
    if WITHOUT_JIT or "EDGELLM_ISA" in os.environ:
        return []
    others = [isa for isa in ("avx2", "generic") if isa in TARGET.available and isa != TARGET.isa]
    variants = {"without the JIT": {"NUMBA_DISABLE_JIT": "1"}} | {isa: {"EDGELLM_ISA": isa} for isa in others}
    return [
        pytest.param(
            changes.get("EDGELLM_ISA", TARGET.isa),
            Process(arguments, {**os.environ, **changes, "OMP_NUM_THREADS": "1"}),
            id=name,
        )
        for name, changes in variants.items()
    ]

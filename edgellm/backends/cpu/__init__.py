"""The CPU backend: numba kernels over the vector types of `simd`, walked by a team of threads.

The kernels' modules import numba, so this file waits with them until the backend is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgellm.backends.cpu.backend import CpuBackend

    backend: CpuBackend


def __getattr__(name: str) -> Any:
    if name != "backend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edgellm.backends.cpu.backend import CpuBackend

    globals()["backend"] = CpuBackend()
    return globals()["backend"]

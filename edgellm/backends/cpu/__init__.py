"""The CPU backend: numba kernels over the vector types of `simd`, walked by a team of threads.

The kernels' modules import numba, so this file waits with them until the backend is asked for.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.backends.cpu.backend import CpuBackend


class _Package(ModuleType):
    """A property rather than a module's `__getattr__`: whoever imports `backend.py` makes that module an attribute of
    this package, and `backend` would be the one or the other by who came first."""

    _backend: CpuBackend | None = None

    @property
    def backend(self) -> CpuBackend:
        if self._backend is None:
            from edgellm.backends.cpu.backend import CpuBackend

            self._backend = CpuBackend()
        return self._backend

    @backend.setter
    def backend(self, module: ModuleType) -> None:
        """Python's import of `backend.py` ends here."""


sys.modules[__name__].__class__ = _Package

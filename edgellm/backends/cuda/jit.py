"""Kernels compiled from their sources as they are asked for, for people who edit them: needs numba-cuda."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.errors import BackendUnavailable

if TYPE_CHECKING:
    from edgellm.backends.cuda.ptx.fresh import Fresh


def jit_code() -> Fresh:
    """What takes the place of the shipped code. Raises `BackendUnavailable`: numba-cuda is not installed."""
    try:
        from edgellm.backends.cuda.ptx.fresh import Fresh

        return Fresh()
    except ImportError as error:
        hint = "Install it (pip install 'edgellm[cuda13]', or cuda12), or leave --jit out."
        what = "the compiler of CUDA kernels is not installed"
        raise BackendUnavailable(what, key="kernels", found=str(error), hint=hint) from error

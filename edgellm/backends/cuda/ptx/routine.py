"""`routine` is `device`."""

from __future__ import annotations

from edgellm.backends.cuda.ptx.function import device as routine

__all__ = ["routine"]

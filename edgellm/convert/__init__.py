"""The converter: calibrate, prune, quantize, evaluate, report; from a published checkpoint to a smaller one.

This room has the name of the function that people call, so it can be called: `edgellm.convert(src, out, ...)` is
`edgellm.api.converting.convert`, whether or not a module of the room was imported before.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `edgellm.api.converting.convert`."""
        return importlib.import_module("edgellm.api.converting").convert(*args, **kwargs)


sys.modules[__name__].__class__ = _Room

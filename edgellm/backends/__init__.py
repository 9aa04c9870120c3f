"""Backends, found by name: `edgellm/backends/<name>/` offers `backend`, see `interface.Backend`.

The folders never import each other; this file imports none of them before it is asked to.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

from edgellm.errors import BackendUnavailable, UsageError

if TYPE_CHECKING:
    from edgellm.backends.interface import Backend

#: Fastest first; `find(None)` takes the first that exists, is finished and can run.
NAMES = ("cuda", "cpu", "reference")
#: `Backend.devices` by name, so that a device is refused without importing those that do not serve it.
_DEVICES = {"cuda": ("cuda",), "cpu": ("cpu",), "reference": ("cpu",)}
#: Backends whose `finished` is not yet true, so that a start that names none need not import them to learn it.
_UNFINISHED = ("cuda",)


def installed() -> list[str]:
    """Names of the backends this version has, fastest first."""
    return [name for name in NAMES if _exists(name)]


def _exists(name: str) -> bool:
    """A folder becomes a backend with its `backend.py`; kernels may stand there before. Imports nothing."""
    package = importlib.util.find_spec(f"edgellm.backends.{name}")
    if package is None:
        return False
    return PathFinder.find_spec(f"{package.name}.backend", package.submodule_search_locations) is not None


def find(name: str | None = None, device: str | None = None) -> Backend:
    """The backend called `name`, or with None the fastest that can run on `device`.

    One that is not finished has to be asked for, by its name or by a kind of device. `device` is "cpu", "cuda",
    "cuda:1" ..., or None or "auto" for any.

    Raises:
        BackendUnavailable: there is no such backend, it does not serve that device, or it cannot run here; nothing is
            put in its place. So is one whose own packages cannot be imported: that is a broken installation, and to
            run far slower without a word would hide it.
    """
    kind = None if device in (None, "auto") else device.split(":")[0]
    if name is not None and name not in installed():
        allowed = ", ".join(installed())
        raise BackendUnavailable("no such backend in this version", key="backend", found=name, allowed=allowed)
    reasons = []
    for candidate in [name] if name else installed():
        if kind is not None and kind not in _DEVICES[candidate]:
            reasons.append(f"backend {candidate} runs on {', '.join(_DEVICES[candidate])} only")
            continue
        if name is None and kind is None and candidate in _UNFINISHED:
            continue
        backend = _imported(candidate)
        reason = backend.unavailable()
        if reason is None:
            return backend
        reasons.append(f"backend {candidate}: {reason}")
    what = "cannot run here" if kind is None else "no backend of this version can run on that device here"
    raise BackendUnavailable(what, key="backend" if kind is None else "device", found=device, hint="; ".join(reasons))


def _imported(name: str) -> Backend:
    try:
        return importlib.import_module(f"edgellm.backends.{name}").backend
    except ImportError as error:
        what = f"what it needs cannot be imported: {str(error).rstrip('.')}"
        hint = "Install edgellm anew (pip install --force-reinstall edgellm), or take backend reference (slow)."
        raise BackendUnavailable(what, key="backend", found=name, hint=hint) from error


def options_for(backend: Backend, given: Mapping[str, str | None]) -> dict[str, str]:
    """The options among `given` that are set, for `Backend.load` and `Backend.plan_bytes`; None leaves the default.

    Raises:
        UsageError: the backend has no such option, or the option no such choice.
    """
    chosen = {key: value for key, value in given.items() if value is not None}
    for key, value in chosen.items():
        if key not in backend.options:
            raise UsageError(
                f"backend {backend.name} has no such option",
                key=key,
                found=repr(value),
                hint=f"Leave {key} out, or choose another backend.",
            )
        if value not in backend.options[key]:
            allowed = ", ".join(backend.options[key])
            raise UsageError("no such choice", key=key, found=repr(value), allowed=allowed)
    return chosen

"""The folders of this user: state, data, cache and configuration of edgellm.

XDG on Linux, Library on macOS, LOCALAPPDATA on Windows; EDGELLM_STATE_DIR, EDGELLM_DATA_DIR, EDGELLM_CACHE_DIR and
EDGELLM_CONFIG_DIR win. Relative values are ignored, as the XDG specification asks.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

_XDG = {
    "state": ("XDG_STATE_HOME", ".local/state"),
    "data": ("XDG_DATA_HOME", ".local/share"),
    "cache": ("XDG_CACHE_HOME", ".cache"),
    "config": ("XDG_CONFIG_HOME", ".config"),
}
_MACOS = {
    "state": "Library/Application Support",
    "data": "Library/Application Support",
    "cache": "Library/Caches",
    "config": "Library/Preferences",
}
KINDS = tuple(_XDG)


class Untrusted(OSError):
    """Somebody else could have written here."""


def folder(kind: str) -> Path | None:
    """The folder for "state", "data", "cache" or "config"; None where this machine has no home. Nothing is created."""
    own = absolute(os.environ.get(f"EDGELLM_{kind.upper()}_DIR"))
    if own is not None:
        return own
    if sys.platform == "win32":
        base = absolute(os.environ.get("LOCALAPPDATA"))
    elif sys.platform == "darwin":
        base = _below_home(_MACOS[kind])
    else:
        variable, below = _XDG[kind]
        base = absolute(os.environ.get(variable)) or _below_home(below)
    return None if base is None else base / "edgellm"


def _below_home(below: str) -> Path | None:
    home = absolute(os.path.expanduser("~"))
    return None if home is None else home / below


def absolute(text: str | None) -> Path | None:
    """The path, None for one that is relative or empty."""
    return Path(text) if text and os.path.isabs(text) else None


def require_private(folder: Path) -> None:
    """Raise `OSError` where `folder` is no folder, or others could have put files into it."""
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise Untrusted(f"{folder} is not a folder")
    require_trusted(found, folder)


def require_trusted(found: os.stat_result, path: Path) -> None:
    """Raise `Untrusted` unless `path` belongs to this user or root and nobody else may write to it."""
    if not hasattr(os, "geteuid"):  # Windows: %LOCALAPPDATA% is private by inheritance
        return
    if found.st_uid not in (0, os.geteuid()):
        raise Untrusted(f"{path} belongs to another user (uid {found.st_uid})")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Untrusted(f"others may write to {path}")


def require_own_home(root: Path) -> None:
    """Root must not leave folders in a user's home that the user could not write to afterwards."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return
    nearest = next(folder for folder in root.parents if folder.exists())
    owner = nearest.stat().st_uid
    if owner != 0:
        raise Untrusted(f"{nearest} belongs to another user (uid {owner})")

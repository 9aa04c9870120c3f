"""Where things lie on this machine: models, state, cache, configuration.

XDG on Linux, Library on macOS, LOCALAPPDATA on Windows; EDGELLM_STATE_DIR, EDGELLM_DATA_DIR, EDGELLM_CACHE_DIR and
EDGELLM_CONFIG_DIR win. Relative values are ignored, as the XDG specification asks.
"""

from __future__ import annotations

import os
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


def folder(kind: str) -> Path | None:
    """The folder for "state", "data", "cache" or "config"; None where this machine has no home. Nothing is created."""
    own = _absolute(os.environ.get(f"EDGELLM_{kind.upper()}_DIR"))
    if own is not None:
        return own
    if sys.platform == "win32":
        base = _absolute(os.environ.get("LOCALAPPDATA"))
    elif sys.platform == "darwin":
        base = _below_home(_MACOS[kind])
    else:
        variable, below = _XDG[kind]
        base = _absolute(os.environ.get(variable)) or _below_home(below)
    return None if base is None else base / "edgellm"


def make_private(path: Path) -> None:
    """Create a folder that only its owner can enter. Raises `OSError`."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def model_folders() -> list[Path]:
    """Where bare model names are looked up, in order."""
    named = [Path(part) for part in os.environ.get("EDGELLM_MODELS", "").split(os.pathsep) if part]
    data = folder("data")
    return named + ([data / "models"] if data is not None else [])


def short(path: str | os.PathLike[str]) -> str:
    """`path` with the home folder written as ~, for text that people paste."""
    text, home = os.fspath(path), os.path.expanduser("~")
    if home not in ("~", "/", "") and (text == home or text.startswith(home + os.sep)):
        return "~" + text[len(home) :]
    return text


def _below_home(below: str) -> Path | None:
    home = _absolute(os.path.expanduser("~"))
    return None if home is None else home / below


def _absolute(text: str | None) -> Path | None:
    return Path(text) if text and os.path.isabs(text) else None

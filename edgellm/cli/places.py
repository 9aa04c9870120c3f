"""Where a command looks for models, and how it shows paths."""

from __future__ import annotations

import os
from pathlib import Path

from edgellm.folders import folder


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

"""From what a person typed as MODEL to a path: itself, or a name in the model folders."""

from __future__ import annotations

import os
from pathlib import Path

from edgellm.api.embedded import NAME
from edgellm.cli.parser import did_you_mean
from edgellm.cli.places import model_folders, short
from edgellm.errors import InputError

_SUFFIXES = (".safetensors", ".json", ".gguf", ".ggml", ".bin", ".pt", ".pth", ".ckpt", ".onnx")


def find_model(name: str | None) -> str | None:
    """The path that `name` means; None is the embedded model.

    Raises:
        InputError: it looks like a bare name and no model folder has it. What looks like a path is handed on as it is,
            whoever opens it knows best what is wrong with it.
    """
    if name is None or os.path.lexists(name):
        return name
    known = known_models()
    if name in known:
        return known[name]
    if name == NAME:
        return None
    if looks_like_path(name):
        return name
    folders = ", ".join(short(folder) for folder in model_folders()) or "no folder: EDGELLM_MODELS is not set"
    hint = did_you_mean(name, [*known, NAME]).removeprefix(". ") or "Name a file or a folder."
    raise InputError("no such model", file=name, hint=f"{hint} Names are looked up in {folders}.")


def is_model(name: str) -> bool:
    """Whether one argument alone means a model and not a prompt."""
    if name == NAME or name in known_models():
        return True
    return looks_like_path(name) or (" " not in name and len(name) < 256 and os.path.lexists(name))


def looks_like_path(name: str) -> bool:
    """Whether `name` is written as a path or an address of a file, whether it exists or not."""
    if any(mark in name for mark in " \n\t") and not _exists(name):
        return False
    marks = ("/", os.sep, "~") if os.sep != "/" else ("/", "~")
    return any(mark in name for mark in marks) or name.lower().endswith(_SUFFIXES)


def known_models() -> dict[str, str]:
    """Path of every model in the model folders, by name; the first folder wins."""
    known: dict[str, str] = {}
    for folder in model_folders():
        for name in _listed(folder):
            path = folder / name
            if name.endswith(".safetensors"):
                known.setdefault(name.removesuffix(".safetensors"), str(path))
                known.setdefault(name, str(path))
            elif path.is_dir():
                known.setdefault(name, str(path))
    return known


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _exists(name: str) -> bool:
    try:
        return os.path.lexists(name)
    except (OSError, ValueError):
        return False

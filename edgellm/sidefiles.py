"""The small files that stand beside the weights: config.json, tokenizer.json, chat templates ...

They lie in a folder, or inside a single-file bundle (`formats/bundle.py`); readers see one interface.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from edgellm.errors import ModelError
from edgellm.jsonfile import MAX_JSON_BYTES, parse_json, read_bytes

MAX_SIDE_FILE_BYTES = 64 << 20  # Gemma 3's tokenizer.json, the largest in common use, is 33 MB


class SideFiles(Protocol):
    """Named byte strings that belong to one model."""

    def read(self, name: str, max_bytes: int = MAX_SIDE_FILE_BYTES) -> bytes | None:
        """The bytes of file `name`, None where there is no such file. Raises `ModelError` where it is too large."""

    def locate(self, name: str) -> str:
        """How an error names that file."""

    def names(self) -> list[str]:
        """The names of all files, sorted; folders are not entered."""


class FolderFiles:
    """The files of a folder."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def read(self, name: str, max_bytes: int = MAX_SIDE_FILE_BYTES) -> bytes | None:
        path = self.folder / name
        return read_bytes(path, max_bytes) if os.path.lexists(path) else None

    def locate(self, name: str) -> str:
        return str(self.folder / name)

    def names(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.folder) if not entry.is_dir())


class MemoryFiles:
    """Files held in memory: the side files of a bundle, and those of tests.

    Args:
        files: bytes by name.
        container: the file they were read from, named in errors.
    """

    def __init__(self, files: Mapping[str, bytes], container: str | os.PathLike[str]) -> None:
        self._files = dict(files)
        self._container = os.fspath(container)

    def read(self, name: str, max_bytes: int = MAX_SIDE_FILE_BYTES) -> bytes | None:
        data = self._files.get(name)
        if data is not None and len(data) > max_bytes:
            raise ModelError("file too large", file=self.locate(name), found=f"{len(data):,} bytes")
        return data

    def locate(self, name: str) -> str:
        return f"{self._container}:{name}"

    def names(self) -> list[str]:
        return sorted(self._files)


def read_side_json(files: SideFiles, name: str, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any] | None:
    """The JSON object in side file `name`, None where there is no such file. Raises `ModelError`."""
    data = files.read(name, max_bytes)
    return None if data is None else parse_json(data, files.locate(name))

"""What of an unfinished output is done, written after every piece, so that a killed run can go on.

Nothing is believed: each piece has a digest of its bytes, and so have the hidden states that the next layer begins
with. A power cut may leave files shorter in truth than in name; then the digests differ, and more is done anew.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from edgellm._version import __version__
from edgellm.errors import EdgeLLMError, OutputError
from edgellm.formats.writer import failures, write_bytes
from edgellm.jsonfile import read_json

FILE = "convert-state.json"
#: What of pruning is done, beside what it wrote; see `prune_stage`.
PRUNE_FILE = "prune-state.json"
_LOCK = "convert.lock"


@dataclass
class State:
    """Attributes:
    folder: of the unfinished output.
    identity: digest of source, recipe, calibration and layout.
    pieces: digest by name, in the order they were done.
    hidden: digest of the hidden states after the last layer that is done, None where there are none.
    """

    folder: Path
    identity: str
    pieces: dict[str, str] = field(default_factory=dict)
    hidden: str | None = None

    def save(self) -> None:
        """Write it, whole or not at all. Raises `OutputError`."""
        import json

        values = {
            "version": __version__, "identity": self.identity, "pieces": self.pieces, "hidden": self.hidden,
        }  # fmt: skip
        aside = self.folder / (FILE + ".new")
        with failures(self.folder / FILE):
            write_bytes(aside, [json.dumps(values, indent=1).encode()])
            os.replace(aside, self.folder / FILE)

    def keep(self, count: int) -> None:
        """Forget all but the first `count` pieces."""
        self.pieces = dict(list(self.pieces.items())[:count])


def read_state(folder: Path) -> State | None:
    """The state of an unfinished output, None where there is none that can be used."""
    try:
        values: dict[str, Any] = read_json(folder / FILE)
        pieces = values["pieces"]
        if values["version"] != __version__ or not all(isinstance(text, str) for text in pieces.values()):
            return None
        return State(folder, values["identity"], dict(pieces), values.get("hidden"))
    except (EdgeLLMError, KeyError, AttributeError):
        return None


def refuse_unfinished(folder: Path, aside: Iterable[str] = ()) -> None:
    """Raises `OutputError` where an unfinished output lies in `folder` that nobody asked to go on with or to replace.

    Args:
        aside: names in it that are this run's own.
    """
    if any((folder / name).exists() for name in {FILE, PRUNE_FILE}.difference(aside)):
        hint = "Say --resume to go on with it, --overwrite to begin anew, or remove it."
        raise OutputError("an unfinished conversion lies there", file=folder, hint=hint)


def clear(folder: Path, keep: Iterable[str] = ()) -> None:
    """Remove what another run left in `folder`, but for the lock that is held and the names in `keep`."""
    with failures(folder):
        for entry in folder.iterdir():
            if entry.name not in (_LOCK, *keep):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an unfinished output alone. Raises `OutputError` where another process does."""
    with failures(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / _LOCK, "a+")  # noqa: SIM115
    try:
        if not _take(file):
            file.seek(0)
            who = file.read(20).strip() or "another process"
            raise OutputError("is being written", file=folder, found=f"process {who}", hint="Wait for it, or end it.")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
    finally:
        file.close()


def _take(file: IO[str]) -> bool:
    """The system's lock, which ends with the process however that ends; where there is none, everybody may."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

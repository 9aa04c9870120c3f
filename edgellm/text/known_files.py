"""Tokenizer files that were looked through before, so that a start need not go through 100,000 tokens again.

`<user cache folder>/edgellm/tokenizers/<digest of the file's bytes>.json` holds what was found, and `<digest>.bpe`
behind a checksum the tables of a byte-level BPE, see `bpe_tables`. A file that is damaged or hostile never gets there,
so it is refused at every start. A note is data, never code, but a false one makes wrong text: nothing is read where
others could have written.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgellm._version import __version__
from edgellm.errors import EdgeLLMError
from edgellm.folders import folder, require_private
from edgellm.jsonfile import read_json
from edgellm.text.bpe_tables import BpeTables

#: Smaller files are looked through each time: it takes less than 20 ms.
MIN_BYTES = 1 << 20
#: Notes and tables, those of a model of 128,000 tokens 4 MB.
KEPT_FILES = 32
#: To be raised when a check is added: files that passed before are then looked through again.
_RULES = 2
TABLES = ".bpe"
_CHECKSUM_BYTES = 32


@dataclass(frozen=True)
class Facts:
    """What a tokenizer.json that may be used says beside what the library knows of it.

    Attributes:
        size: highest id of the model's own and the added tokens, + 1.
        may_panic: whether an expression may backtrack until the library gives up, see `panics`.
        decoder: the file's entry.
    """

    size: int
    may_panic: bool
    decoder: dict[str, Any] | None


def library_build() -> str:
    """Which `tokenizers` library is installed, told from its files: to import it takes 30 ms."""
    spec = importlib.util.find_spec("tokenizers")
    try:
        found = os.stat(spec.origin)
    except (AttributeError, OSError, TypeError):  # in a frozen program, say
        import tokenizers

        return tokenizers.__version__
    return f"{spec.origin} {found.st_size} {found.st_mtime_ns}"


def note_of(data: bytes, library: str) -> Path | None:
    """Where it is noted what was found in these bytes with that library; None where nothing is: of a small file, or
    without a folder. All else here takes it, for a digest of 17 MB is not made twice in a start."""
    cache = folder("cache")
    if cache is None or len(data) < MIN_BYTES:
        return None
    digest = hashlib.sha256(data)
    digest.update(f" {_RULES} {__version__} {library}".encode())
    return cache / "tokenizers" / f"{digest.hexdigest()[:32]}.json"


def recall(note: Path | None) -> Facts | None:
    """What was found; None where nobody looked, or nothing was kept."""
    if not _is_readable(note):
        return None
    try:
        facts = Facts(**read_json(note))
        if type(facts.size) is int and type(facts.may_panic) is bool and isinstance(facts.decoder, (dict, type(None))):
            return facts
    except (EdgeLLMError, TypeError):
        pass
    return None


def remember(note: Path | None, facts: Facts) -> None:
    """Keep what was found; where nothing can be written, nothing is."""
    if note is not None:
        _write(note, json.dumps(asdict(facts)).encode())


def recall_tables(note: Path | None) -> BpeTables | None:
    """The tables that were made; None where none were, or they are damaged: they are made anew then."""
    if not _is_readable(note):
        return None
    path = note.with_suffix(TABLES)
    try:
        kept = path.read_bytes()
        if hashlib.sha256(memoryview(kept)[_CHECKSUM_BYTES:]).digest() == kept[:_CHECKSUM_BYTES]:
            return BpeTables.from_bytes(kept[_CHECKSUM_BYTES:])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        pass
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        note.unlink(missing_ok=True)  # else nobody would look through the file again
    return None


def remember_tables(note: Path | None, tables: BpeTables) -> None:
    """Keep tables beside what was found; where nothing can be written, nothing is."""
    if _is_readable(note):
        kept = tables.to_bytes()
        _write(note.with_suffix(TABLES), hashlib.sha256(kept).digest() + kept)


def _write(path: Path, kept: bytes) -> None:
    """Write aside, then rename: a reader finds all of it or nothing."""
    aside = path.with_name(f"{path.name}.{os.urandom(6).hex()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        notes = sorted(path.parent.iterdir(), key=lambda note: note.stat().st_mtime)
        for note in notes[: max(len(notes) - KEPT_FILES + 1, 0)]:
            note.unlink()
        aside.write_bytes(kept)
        os.replace(aside, path)


def _is_readable(note: Path | None) -> bool:
    """Whether there is a folder for it that others cannot write to."""
    try:
        if note is not None:
            require_private(note.parent)
    except OSError:
        return False
    return note is not None

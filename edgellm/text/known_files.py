"""Tokenizer files that were looked through before, so that a start need not go through 100,000 tokens again.

`<user cache folder>/edgellm/tokenizers/<digest of the file's bytes>.json` holds what was found. A file that is damaged
or hostile never gets there, so it is refused at every start. A note is data, never code: a false one makes wrong text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgellm._version import __version__
from edgellm.errors import EdgeLLMError
from edgellm.folders import folder
from edgellm.jsonfile import read_json

#: Smaller files are looked through each time: it takes less than 20 ms.
MIN_BYTES = 1 << 20
KEPT_FILES = 64
#: To be raised when a check is added: files that passed before are then looked through again.
_RULES = 1


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


def recall(data: bytes, library_version: str) -> Facts | None:
    """What was found in these bytes; None where nobody looked, or nothing was kept."""
    path = _path(data, library_version)
    if path is None:
        return None
    try:
        note = read_json(path)
        facts = Facts(**note)
        if type(facts.size) is int and type(facts.may_panic) is bool and isinstance(facts.decoder, (dict, type(None))):
            return facts
    except (EdgeLLMError, TypeError):
        pass
    return None


def remember(data: bytes, library_version: str, facts: Facts) -> None:
    """Keep what was found; where nothing can be written, nothing is."""
    path = _path(data, library_version)
    if path is None:
        return
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        notes = sorted(path.parent.iterdir(), key=lambda note: note.stat().st_mtime)
        for note in notes[: max(len(notes) - KEPT_FILES + 1, 0)]:
            note.unlink()
        aside.write_text(json.dumps(asdict(facts)), encoding="utf-8")
        os.replace(aside, path)


def _path(data: bytes, library_version: str) -> Path | None:
    cache = folder("cache")
    if cache is None or len(data) < MIN_BYTES:
        return None
    digest = hashlib.sha256(data)
    digest.update(f" {_RULES} {__version__} {library_version}".encode())
    return cache / "tokenizers" / f"{digest.hexdigest()[:32]}.json"

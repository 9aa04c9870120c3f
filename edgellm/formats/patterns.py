"""Settings by module name, where the names in the file may be regular expressions nobody vouches for.

Python's `re` can take for ever on `(a+)+b`. An expression here may not repeat a group, so matching time is polynomial
with a small exponent, and all matching of one checkpoint shares a budget of time.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

from edgellm.errors import ModelError
from edgellm.formats.limits import (
    MAX_MATCH_SECONDS,
    MAX_MATCHED_CHARS,
    MAX_OVERRIDES,
    MAX_PATTERN_CHARS,
    MAX_PATTERN_REPEATS,
    MAX_PATTERNS,
)

_ESCAPE = re.compile(r"\\.", re.DOTALL)
_CLASS = re.compile(r"\[\^?\]?[^\]]*\]")
_REPEATED_GROUP = re.compile(r"\)\s*[*+{]")
_SPECIAL = re.compile(r"[\\^$*+?{}\[\]|()]")


def compile_pattern(text: str, file: str | os.PathLike[str], key: str) -> re.Pattern[str]:
    """Compile a regular expression from a file. Raises `ModelError` where it is none or could take long."""
    plain = _CLASS.sub("c", _ESCAPE.sub("e", text))
    repeats = sum(plain.count(sign) for sign in "*+{")
    if len(text) > MAX_PATTERN_CHARS or repeats > MAX_PATTERN_REPEATS or _REPEATED_GROUP.search(plain):
        raise ModelError("a regular expression that could take too long", file=file, key=key, found=text)
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ModelError(f"not a regular expression ({error})", file=file, key=key, found=text) from None


class ModuleTable:
    """Values by module name or regular expression; the first match wins, a plain name before any expression."""

    def __init__(self, file: str | os.PathLike[str], key: str) -> None:
        self._file, self._key = file, key
        self._names: dict[str, Any] = {}
        self._patterns: list[tuple[re.Pattern[str], Any]] = []
        self._seconds_left = MAX_MATCH_SECONDS

    def __len__(self) -> int:
        return len(self._names) + len(self._patterns)

    def add(self, name: str, value: Any) -> None:
        """A name to match whole; one with an unescaped special sign other than "." is an expression too."""
        self._names.setdefault(name, value)
        if _SPECIAL.search(name):
            self.add_pattern(name, value)
        self._bound(len(self._names), MAX_OVERRIDES)

    def add_pattern(self, text: str, value: Any) -> None:
        """A regular expression, matched from the start of a module's name. Raises `ModelError`."""
        self._patterns.append((compile_pattern(text, self._file, self._key), value))
        self._bound(len(self._patterns), MAX_PATTERNS)

    def find(self, module: str) -> Any | None:
        """The value for a module's full name, None where nothing matches. Raises `ModelError` out of time."""
        if module in self._names:
            return self._names[module]
        if self._patterns and len(module) > MAX_MATCHED_CHARS:
            raise ModelError("a module's name is too long to match", file=self._file, key=self._key, found=module)
        start = time.monotonic()
        for pattern, value in self._patterns:
            found = pattern.match(module) is not None
            spent = time.monotonic() - start
            if spent > self._seconds_left:
                raise ModelError("matching its expressions takes too long", file=self._file, key=self._key)
            if found:
                self._seconds_left -= spent
                return value
        self._seconds_left -= time.monotonic() - start
        return None

    def _bound(self, count: int, allowed: int) -> None:
        if count > allowed:
            raise ModelError("too many entries", file=self._file, key=self._key, allowed=f"{allowed:,}")

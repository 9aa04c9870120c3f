"""JSON from files nobody vouches for: size, depth, duplicate keys and numbers are checked before a value is used.

Python's own reader accepts NaN, 1e999, duplicate keys (the last wins) and lone surrogates, raises ValueError on
5,000-digit integers and RecursionError on deep nesting. Here each of these is a `ModelError` that names the file.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from typing import Any

from edgellm.errors import InputError, ModelError

MAX_JSON_BYTES = 4 << 20
_MAX_DIGITS = 40  # transformers writes 10^30 as a float's integer, 31 digits, into tokenizer_config.json
_LONG_INTEGER = re.compile(rf"[0-9]{{{_MAX_DIGITS}}}[0-9]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_bytes(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The whole of a regular file of at most `max_bytes`.

    Raises:
        InputError: the file is missing or unreadable.
        ModelError: it is not a regular file (a FIFO would block), too large, or a git-lfs pointer.
    """
    try:
        with open(path, "rb", opener=_open_nonblocking) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelError("not a regular file", file=path)
            if status.st_size > max_bytes:
                raise ModelError(
                    "file too large", file=path, found=f"{status.st_size:,} bytes", allowed=f"{max_bytes:,}"
                )
            data = file.read(max_bytes + 1)
    except IsADirectoryError:
        raise ModelError("not a regular file", file=path) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error})", file=path) from None
    if data.startswith(b"version https://git-lfs"):
        raise ModelError("this is a git-lfs pointer, not the file itself", file=path, hint="Download the real file.")
    return data


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_json(path: str | os.PathLike[str], max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file (UTF-8, a byte order mark is accepted). Raises `InputError`, `ModelError`."""
    return parse_json(read_bytes(path, max_bytes), path)


def parse_json(data: bytes, file: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in `data`; `file` is named in errors. Raises `ModelError`."""

    def refuse(what: str, found: object = None) -> ModelError:
        return ModelError(what, file=file, found=found)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(items)
        if len(table) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))
            raise refuse("JSON object has the same key twice", twice)
        return table

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise refuse("JSON number out of range", text)
        return value

    def integer(text: str) -> int:
        if len(text) > _MAX_DIGITS:
            raise refuse("JSON integer too long", f"{len(text)} digits")
        return int(text)

    def constant(text: str) -> float:
        raise refuse("JSON number is not finite", text)

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refuse(f"not UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=pairs,
            parse_float=number,
            # a call for each of a vocabulary's 100,000 numbers is half of the time that the whole file takes
            parse_int=integer if _LONG_INTEGER.search(text) else None,
            parse_constant=constant,
        )
    except RecursionError:
        raise refuse("JSON nested too deeply") from None
    except json.JSONDecodeError as error:
        what = "file is empty" if not data else f"not JSON ({error.msg}, line {error.lineno} column {error.colno})"
        raise refuse(what) from None
    if not isinstance(value, dict):
        raise refuse("JSON must be an object", type(value).__name__)
    if "\\u" in text and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise refuse("JSON text has a lone surrogate")
    return value

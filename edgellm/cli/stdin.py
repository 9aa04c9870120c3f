"""Text from standard input: bytes read as UTF-8 whatever the locale says."""

from __future__ import annotations

import sys

from edgellm.errors import UsageError

#: No context holds this many bytes of text; an endless pipe must end somewhere.
MAX_STDIN_BYTES = 64 << 20


def read_all() -> tuple[str, bool]:
    """All of standard input, and whether some of it was not UTF-8 and was replaced by U+FFFD.

    Raises:
        UsageError: it is closed, or longer than any context.
    """
    if sys.stdin is None:
        raise UsageError("standard input is closed", hint="Give the prompt as an argument.")
    binary = getattr(sys.stdin, "buffer", None)
    if binary is None:
        return sys.stdin.read(), False
    data = binary.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise UsageError("standard input is longer than any context", allowed=f"{MAX_STDIN_BYTES >> 20} MiB")
    return decode(data)


def read_line() -> str | None:
    """The next line without its end, None after the last."""
    if sys.stdin is None:
        return None
    binary = getattr(sys.stdin, "buffer", None)
    line = sys.stdin.readline() if binary is None else decode(binary.readline(MAX_STDIN_BYTES))[0]
    return line.removesuffix("\n").removesuffix("\r") if line else None


def decode(data: bytes) -> tuple[str, bool]:
    """UTF-8 without a byte order mark; whether bytes had to be replaced."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode(), False
    except UnicodeDecodeError:
        return data.decode(errors="replace"), True

"""PTX text cut into tokens."""

from __future__ import annotations

import re
from typing import NamedTuple

from tools.ptx_emulator.errors import EmulatorError


class Token(NamedTuple):
    text: str
    line: int


_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/)
      | (?P<string>"[^"]*")
      | (?P<number>-?(?:0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|0[xX][0-9a-fA-F]+U?|\d+\.\d+(?:[eE][-+]?\d+)?|\d+U?))
      | (?P<word>[%$.A-Za-z_][\w$.]*(?:::[\w$.]+)*)
      | (?P<mark>[{}()\[\],;:@!|+=<>-])""",
    re.VERBOSE | re.DOTALL,
)


def tokens_of(text: str) -> list[Token]:
    """The tokens of `text` in order; EmulatorError at the first character that begins none."""
    found, position, line = [], 0, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise EmulatorError(f"cannot read {text[position : position + 20]!r}", line)
        if match.lastgroup != "space":
            found.append(Token(match.group(), line))
        line += match.group().count("\n")
        position = match.end()
    return found

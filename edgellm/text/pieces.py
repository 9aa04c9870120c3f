"""From the decoder of a tokenizer.json to the bytes of a single token.

The decoders of language models work token by token, apart from a space they drop at the very start. Reading them as
"token -> bytes" makes streaming exact. One difference from the library is wanted: in a run of byte tokens with a
mistake in it, the characters around the mistake are kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from edgellm.errors import TokenizerError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "▁"


def byte_level_bytes() -> dict[str, int]:
    """GPT-2's table: the printable character that stands for each byte, as character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


class PieceDecoder:
    """Reads the `decoder` of a tokenizer.json.

    Attributes:
        strip: leading spaces of the whole text to drop.
        separator: bytes between tokens.

    Raises:
        TokenizerError: a decoder that does not work token by token.
    """

    def __init__(self, decoder: dict[str, Any] | None, file: str) -> None:
        self.strip = 0
        self.separator = b"" if decoder else b" "
        self._steps: list[Callable[[str], str]] = []
        self._last: Callable[[str], bytes] = str.encode
        self._fused = False
        for step in decoder.get("decoders", []) if decoder and decoder.get("type") == "Sequence" else [decoder]:
            if step is not None and not self._read(step):
                raise TokenizerError(
                    "decoder is not supported",
                    file=file,
                    key="decoder",
                    found=step,
                    allowed="ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip of one leading space",
                )

    def __call__(self, token: str) -> bytes:
        for step in self._steps:
            token = step(token)
        return self._last(token)

    def _read(self, step: Any) -> bool:
        match step:
            case {"type": "ByteLevel"}:
                self._last = _from_byte_level(byte_level_bytes())
            case {"type": "ByteFallback"}:
                self._last = _from_byte_token
            case {"type": "Fuse"}:
                self._fused = True
            case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if pattern:
                self._steps.append(lambda token: token.replace(pattern, content))
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0} if start <= 1 and self._fused:
                self.strip = start
            case {"type": "Metaspace", "replacement": str(mark)} if mark:
                self._steps.append(lambda token: token.replace(mark, " "))
                prefixed = step.get("add_prefix_space", True) and step.get("prepend_scheme", "always") != "never"
                self.strip = int(prefixed)
            case _:
                return False
        return True


def _from_byte_token(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.encode()


def _from_byte_level(table: dict[str, int]) -> Callable[[str], bytes]:
    def decode(token: str) -> bytes:
        try:
            return bytes([table[character] for character in token])
        except KeyError:  # an added token: it stands for its own text
            return token.encode()

    return decode

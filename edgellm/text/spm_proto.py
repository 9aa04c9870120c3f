"""As much of sentencepiece's ModelProto as edgellm must know: the pieces' types and the normalizer's settings.

ModelProto:     1 pieces (repeated SentencePiece), 2 trainer_spec, 3 normalizer_spec
SentencePiece:  1 piece (string), 2 score (float), 3 type (the constants below)
NormalizerSpec: 2 precompiled_charsmap (bytes), 3 add_dummy_prefix, 4 remove_extra_whitespaces (both default true)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgellm.errors import TokenizerError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# A message field that comes twice is merged, so a second normalizer_spec at the end changes one setting.
WITHOUT_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
_MAX_PIECES = 1 << 22


@dataclass
class SpmModel:
    """A parsed model. `pieces` are (text, type), `type_at` where the type byte of a piece stands in the file."""

    pieces: list[tuple[str, int]] = field(default_factory=list)
    type_at: list[int | None] = field(default_factory=list)
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    charsmap: bytes = b""


def parse_spm(data: bytes, file: str) -> SpmModel:
    """Reads a tokenizer.model. Raises `TokenizerError` where it is no ModelProto."""
    model = SpmModel()
    try:
        for number, value, _ in fields(data, 0, len(data)):
            if number == 1 and isinstance(value, range):
                _read_piece(data, value, model)
            elif number == 3 and isinstance(value, range):
                _read_normalizer(data, value, model)
            if len(model.pieces) > _MAX_PIECES:
                raise ValueError("too many pieces")
    except (ValueError, IndexError) as error:
        raise TokenizerError(f"not a sentencepiece model ({error})", file=file) from None
    if not model.pieces:
        raise TokenizerError("not a sentencepiece model (no pieces)", file=file)
    return model


def _read_piece(data: bytes, span: range, model: SpmModel) -> None:
    text, kind, type_at = "", NORMAL, None
    for number, value, at in fields(data, span.start, span.stop):
        if number == 1 and isinstance(value, range):
            text = data[value.start : value.stop].decode("utf-8")
        elif number == 3 and isinstance(value, int):
            kind, type_at = value, at
    if kind == BYTE and not _BYTE_PIECE.fullmatch(text):
        raise ValueError(f"byte piece {text!r}")
    model.pieces.append((text, kind))
    model.type_at.append(type_at)


def _read_normalizer(data: bytes, span: range, model: SpmModel) -> None:
    for number, value, _ in fields(data, span.start, span.stop):
        if number == 2 and isinstance(value, range):
            model.charsmap = data[value.start : value.stop]
        elif number == 3 and isinstance(value, int):
            model.add_dummy_prefix = bool(value)
        elif number == 4 and isinstance(value, int):
            model.remove_extra_whitespaces = bool(value)


def fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int | range, int]]:
    """(field number, value, where the value stands); a range of bytes for what has a length."""
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, after = _varint(data, at)
        elif kind in (1, 5):
            value, after = 0, at + (8 if kind == 1 else 4)
        elif kind == 2:
            size, at = _varint(data, at)
            value, after = range(at, at + size), at + size
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if after > end:
            raise ValueError(f"truncated at byte {at}")
        yield tag >> 3, value, at
        at = after


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"number too long at byte {at}")

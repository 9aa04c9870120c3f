"""Texts of a file, one document after the other, read piece by piece so that a file may be larger than memory.

A file whose name ends in .jsonl holds one document a line: a JSON string, an object with "text", or a conversation,
an object with "messages". Any other file is one document in UTF-8.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from edgellm.errors import InputError, UsageError
from edgellm.jsonfile import parse_json
from edgellm.text import ChatTemplate, Tokenizer, encode_chat

#: A plain text is encoded in pieces of about this many bytes, cut at the end of a line where there is one.
PIECE_BYTES = 4 << 20
#: A longer line of a JSONL file is refused: no context holds it.
MAX_LINE_BYTES = 16 << 20
SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Document:
    """A text in pieces, or a conversation.

    Attributes:
        pieces: of the text, to be read once, in order.
        messages: of a conversation, None for a text.
        position: bytes of the file before the end of what was last read, for progress.
    """

    pieces: Iterator[tuple[str, int]] = field(default_factory=lambda: iter(()))
    messages: tuple[Mapping[str, Any], ...] | None = None
    position: int = 0


def read_documents(path: str | os.PathLike[str], text_key: str = "text") -> Iterator[Document]:
    """The documents of a file, as they are asked for; the pieces of one before the next document.

    Args:
        path: a text, or JSONL where the name ends in .jsonl.
        text_key: of the objects of a JSONL file.

    Raises:
        InputError: the file is missing, is not UTF-8, or a line of JSONL holds no document.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            if path.suffix == SUFFIX:
                yield from _lines(file, path, text_key)
            else:
                yield Document(_pieces(file, path))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from None


def encode_document(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    document: Document,
    path: str | os.PathLike[str],
    *,
    add_special_tokens: bool = False,
) -> Iterator[list[int]]:
    """Token ids of a document's pieces; a conversation is one piece, as the template has it.

    Special tokens that a text spells stay text.

    Args:
        add_special_tokens: whether a text begins as the tokenizer begins one (BOS where it puts one).

    Raises:
        UsageError: a conversation for a model without a chat template. TokenizerError, TemplateError: see there.
    """
    if document.messages is None:
        for number, (text, _) in enumerate(document.pieces):
            begins = add_special_tokens and number == 0
            yield tokenizer.encode(text, add_special_tokens=begins, parse_special=False)
        return
    if template is None:
        hint = 'Give lines with "text", or a model with a chat template.'
        raise UsageError("the model has no chat template for conversations", file=path, key="messages", hint=hint)
    yield encode_chat(tokenizer, template, document.messages, add_generation_prompt=False)


def file_bytes(path: str | os.PathLike[str]) -> int:
    """The size of a file of documents. Raises `InputError`."""
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from None


def _pieces(file: IO[bytes], path: Path) -> Iterator[tuple[str, int]]:
    """(text, bytes read so far); a piece ends behind a line's end, unless a line is longer than a piece."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    held, position = "", 0
    while True:
        data = file.read(PIECE_BYTES)
        if position == 0:
            data = data.removeprefix(codecs.BOM_UTF8)
        try:
            held += decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8 (near byte {position + error.start})", file=path) from None
        position += len(data)
        if not data:
            if held:
                yield held, position
            return
        cut = held.rfind("\n") + 1 or (len(held) if len(held) >= PIECE_BYTES else 0)
        if cut:
            yield held[:cut], position
            held = held[cut:]


def _lines(file: IO[bytes], path: Path, text_key: str) -> Iterator[Document]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InputError("the line is too long", file=path, key=f"line {number}", allowed=f"{MAX_LINE_BYTES} bytes")
        if line.strip():
            yield _document(line, f"{path}, line {number}", text_key, file.tell())


def _document(line: bytes, where: str, text_key: str, position: int) -> Document:
    values = parse_json(b'{"document":' + line.strip() + b"}", where)["document"]
    if isinstance(values, dict) and isinstance(values.get("messages"), list):
        messages = values["messages"]
        if all(isinstance(message, dict) for message in messages) and messages:
            return Document(messages=tuple(messages), position=position)
        raise InputError("not a conversation", file=where, key="messages", allowed="a list of objects")
    text = values.get(text_key) if isinstance(values, dict) else values
    if not isinstance(text, str):
        allowed = f'a string, an object with "{text_key}" (a string) or with "messages"'
        raise InputError("no text in this line", file=where, found=type(text).__name__, allowed=allowed)
    return Document(iter([(text, position)]), position=position)

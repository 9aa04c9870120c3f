"""Tokenizer and chat template of an opened model, and what stands in where it has no tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgellm.errors import TokenizerError, UsageError
from edgellm.model import OpenedModel
from edgellm.text import ChatTemplate, TextStream, Tokenizer, load_chat_template, load_tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


class NoTokenizer:
    """Stands in for the tokenizer of a model without one: token ids work, text does not."""

    kind = "none"
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    special_ids: frozenset[int] = frozenset()
    special_tokens: Mapping[str, int] = {}
    prefix_ids: tuple[int, ...] = ()

    def __init__(self, file: str, vocab_size: int) -> None:
        self.file = file
        self.vocab_size = vocab_size

    def encode(self, text: str, **_: Any) -> list[int]:
        """Raises `TokenizerError`."""
        raise TokenizerError(
            "the model has no tokenizer", file=self.file, hint="Give token ids, or put its tokenizer files beside it."
        )

    def decode(self, ids: Iterable[int], **_: Any) -> str:
        """Raises `TokenizerError`."""
        return "".join(self.encode("") for _ in ids)

    def decoder(self, **_: Any) -> TextStream:
        """A decoder whose text is empty."""
        return TextStream(self.piece_bytes)

    def piece_bytes(self, token_id: int) -> bytes:
        """No bytes. Raises `UsageError` for an id that is none."""
        if not 0 <= token_id < self.vocab_size:
            raise UsageError("no such token id", found=token_id, allowed=f"0 to {self.vocab_size - 1}")
        return b""


def load_text(opened: OpenedModel) -> tuple[Tokenizer | NoTokenizer, ChatTemplate | None]:
    """Tokenizer and chat template. Raises `TokenizerError`, `TemplateError`, `ModelError`."""
    files = opened.side_files
    if not set(TOKENIZER_FILES) & set(files.names()):
        return NoTokenizer(files.locate(TOKENIZER_FILES[0]), opened.config.vocab_size), None
    tokenizer = load_tokenizer(files, vocab_size=opened.config.vocab_size)
    return tokenizer, load_chat_template(files, tokenizer)

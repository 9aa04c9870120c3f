"""Calibration tokens: a text, JSONL or chat JSONL file, or the built-in text, packed into N sequences of L tokens."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm.convert.documents import encode_document, read_documents
from edgellm.errors import InputError, UsageError
from edgellm.model import OpenedModel
from edgellm.text import ChatTemplate, Tokenizer, load_chat_template, load_tokenizer

#: The project's own text, written for this: prose, dialogue, code, tables, sums, lists, other languages.
BUILT_IN = Path(__file__).parent / "data" / "calibration.txt"
#: Tokens that are looked at of a long file, as a multiple of those wanted: enough to draw from, soon read.
_POOL = 8


@dataclass(frozen=True, eq=False)
class Calibration:
    """Token ids to calibrate on.

    Attributes:
        token_ids: int32 [N, L].
        source: what they were read from, for people.
        notes: what a person should know.
    """

    token_ids: np.ndarray
    source: str
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        return self.token_ids.size

    def digest(self) -> str:
        """Of the ids and their arrangement."""
        shape = repr(self.token_ids.shape).encode()
        return hashlib.sha256(shape + np.ascontiguousarray(self.token_ids).tobytes()).hexdigest()


def load_calibration(
    opened: OpenedModel, path: str | os.PathLike[str] | None = None, *, sequences: int, length: int, seed: int = 0
) -> Calibration:
    """The calibration tokens for a model.

    Documents are encoded one by one, joined with the model's end of text between them where it has one, and cut into
    rows that each begin as the model's own texts do (BOS where it wants one). A longer file is drawn from by `seed`
    over its first 8 times as many tokens as are wanted.

    Args:
        path: text, .jsonl of texts ({"text"}) or conversations ({"messages"}, which go through the chat template);
            None for the built-in text.
        sequences, length: N and L at most; a short text gives fewer sequences, and one shorter than L a single one.

    Raises:
        InputError: the file is missing, or holds no usable text.
        UsageError: the model has no chat template for conversations, or positions for so many tokens.
        TokenizerError, TemplateError: see there.
    """
    longest = opened.config.max_position_embeddings
    if length > longest:
        raise UsageError(
            "the model has no such positions", key="sequence_length", found=length, allowed=f"<= {longest}"
        )
    tokenizer = load_tokenizer(opened.side_files, vocab_size=opened.config.vocab_size)
    template = load_chat_template(opened.side_files, tokenizer)
    ids = _pool(tokenizer, template, BUILT_IN if path is None else Path(path), _POOL * sequences * length)
    prefix = [*tokenizer.prefix_ids]
    rows, notes = pack(ids, prefix, sequences, length, seed)
    source = "the built-in text" if path is None else str(path)
    return Calibration(rows, source, tuple(notes))


def pack(
    ids: np.ndarray, prefix: Sequence[int], sequences: int, length: int, seed: int
) -> tuple[np.ndarray, list[str]]:
    """(rows int32 [N, L] of consecutive ids behind `prefix`, notes). Rows do not overlap; `seed` draws among them.

    Raises:
        UsageError: `prefix` fills a row, or there is not one id to put behind it.
    """
    room = length - len(prefix)
    if room < 1 or not len(ids):
        raise UsageError("no room for calibration tokens", key="sequence_length", found=f"{len(ids)} ids, {room} a row")
    notes = []
    if len(ids) < room:
        room = len(ids)
        notes.append(f"the calibration text has only {room:,} tokens: one sequence of {room + len(prefix)}")
    available = len(ids) // room
    if available < sequences and not notes:
        notes.append(f"the calibration text gives {available} sequences of {length}, {sequences} were asked for")
    taken = np.arange(available)
    if available > sequences:
        taken = np.sort(np.random.default_rng(seed).permutation(available)[:sequences])
    body = np.asarray(ids[: available * room], np.int32).reshape(available, room)[taken]
    head = np.tile(np.array(prefix, np.int32), (len(body), 1))
    return np.concatenate([head, body], axis=1), notes


def _pool(tokenizer: Tokenizer, template: ChatTemplate | None, path: Path, wanted: int) -> np.ndarray:
    """Ids of the file's documents, up to about `wanted`."""
    ids: list[int] = []
    separator = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for document in read_documents(path):
        for part in encode_document(tokenizer, template, document, path):
            ids.extend(part)
            if len(ids) >= wanted:
                return np.array(ids[:wanted], np.int32)
        if document.messages is None:
            ids.extend(separator)
    if not ids or ids == separator:
        raise InputError("holds no text to calibrate on", file=path)
    return np.array(ids, np.int32)

"""Texts as rows of token ids of one length, those to train on and those held out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgellm.convert.documents import encode_document, read_documents
from edgellm.errors import UsageError
from edgellm.model import OpenedModel
from edgellm.text import load_chat_template, load_tokenizer

#: More ids than this are not read: many epochs of what a CPU can train on.
MOST_TOKENS = 1 << 26


@dataclass(frozen=True)
class Rows:
    """Token ids int32 [N, T + 1]; each row is T inputs and, one further, T targets.

    Attributes:
        train: to learn from.
        held_out: never trained on.
    """

    train: np.ndarray
    held_out: np.ndarray


def encode_texts(model: OpenedModel, paths: Sequence[str | os.PathLike[str]]) -> np.ndarray:
    """All documents one after the other as the model's tokenizer and chat template encode them, int32 [N].

    Each begins as the tokenizer begins a text (BOS where it puts one); ids beyond `MOST_TOKENS` are left out.

    Raises:
        InputError: a file cannot be read, or a line holds no document.
        TokenizerError, TemplateError, ModelError: see there.
        UsageError: a conversation for a model without a chat template.
    """
    tokenizer = load_tokenizer(model.side_files, vocab_size=model.config.vocab_size)
    template = load_chat_template(model.side_files, tokenizer)
    parts: list[np.ndarray] = []
    count = 0
    documents = ((document, path) for path in paths for document in read_documents(path))
    pieces = (encode_document(tokenizer, template, *found, add_special_tokens=True) for found in documents)
    for ids in itertools.chain.from_iterable(pieces):
        parts.append(np.array(ids[: MOST_TOKENS - count], np.int32))
        count += len(parts[-1])
        if count >= MOST_TOKENS:
            break
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def cut_rows(ids: np.ndarray, length: int, held_out: float, most_held_out: int) -> Rows:
    """`ids` in rows of `length` + 1, each beginning where the one before has its last id.

    Args:
        length: T.
        held_out: share of the rows, the last ones, that is held out.
        most_held_out: tokens held out at most.

    Raises:
        UsageError: fewer ids than two rows.
    """
    count = (len(ids) - 1) // length
    if count < 2:
        hint = "Give more text, or a smaller --length."
        raise UsageError(
            "too little text", key="--text", found=f"{len(ids)} ids", allowed=f"{2 * length + 1}", hint=hint
        )
    rows = np.stack([ids[first : first + length + 1] for first in range(0, count * length, length)])
    kept = min(max(round(count * held_out), 1), max(most_held_out // length, 1), count - 1)
    return Rows(rows[:-kept], rows[-kept:])


def batch_rows(count: int, size: int, step: int, seed: int) -> np.ndarray:
    """Numbers [size] of the rows of step 0, 1 ...: each epoch is a permutation of its own, drawn from the seed.

    A function of the step alone, so that training goes on after an interruption as if there had been none.
    """
    wanted = np.arange(step * size, (step + 1) * size)
    found = np.empty(size, np.int64)
    for epoch in np.unique(wanted // count):
        here = wanted // count == epoch
        found[here] = np.random.default_rng((seed, int(epoch))).permutation(count)[wanted[here] % count]
    return found

"""`edgellm.evaluate`: how well a loaded model predicts a text, and how far it is from another one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from edgellm.convert.documents import Document, file_bytes, read_documents
from edgellm.convert.evaluate import Evaluation, Sums, count_window, summarize
from edgellm.convert.windows import DEFAULT_WINDOW, check_sizes, windows
from edgellm.errors import UsageError

if TYPE_CHECKING:
    from edgellm.api.llm import LLM

#: Called after each window with (bytes of the file done, bytes in all, what was counted so far).
EvaluationProgress = Callable[[int, int, Sums], None]
_SAMPLE = "Hello, world! 0123 \n\tdef f(x): return x + 1  Straße 東京 🙂"


def evaluate(
    model: LLM,
    text: str | os.PathLike[str],
    *,
    against: LLM | None = None,
    window: int | None = None,
    stride: int | None = None,
    text_key: str = "text",
    progress: EvaluationProgress | None = None,
) -> Evaluation:
    """Perplexity of a text file, and KL divergence and top-1 agreement against another model.

    Every id is counted once, given the ids before it in its window. Where the tokenizer puts BOS before a text, every
    window begins with it and it is never counted; elsewhere the first id of each document is excluded, for nothing
    stands before it. Conversations are rendered by the model's chat template, whose first id is excluded.

    Args:
        model: loaded, with a context of at least the window.
        text: a text in UTF-8, or JSONL (a document a line: a string, {"text": ...} or {"messages": [...]}).
            A text of more than 4 MiB is encoded in pieces cut at ends of lines.
        against: a model with the same tokenizer; the distributions are compared as KL(against || model).
        window: ids a model is given at once; None: what the contexts hold, at most 2048.
        stride: new ids counted a window, below `window`; None: as many as fit, so that windows do not overlap but for
            one id of context.
        text_key: of the objects of a JSONL file.
        progress: see `EvaluationProgress`.

    Raises:
        UsageError: window or stride out of range, other tokenizers, or nothing to predict.
        InputError: the file is missing or no text. ContextLengthError: a window is longer than a context.
        TemplateError: a conversation that the template refuses. NumericalError: NaN or infinity.
    """
    window = window or min([DEFAULT_WINDOW, *(llm.context for llm in (model, against) if llm is not None)])
    prefix = model.tokenizer.prefix_ids
    stride = stride or window - max(len(prefix), 1)
    check_sizes(window, stride)
    if against is not None:
        check_tokenizers(model, against)
    total, done = file_bytes(text), _Counts()
    sums = Sums()
    other = None if against is None else against.logits_in_steps
    for document in read_documents(text, text_key):
        before = prefix if document.messages is None else ()
        ids = done.text_ids(model, document) if document.messages is None else done.chat_ids(model, document)
        counted = sums.tokens
        for part in windows(ids, before, window, stride):
            count_window(sums, part, model.logits_in_steps, other)
            if progress is not None:
                progress(done.position, total, sums)
        done.close_document(sums.tokens - counted)
    return summarize(sums, window=window, stride=stride, nbytes=done.bytes, excluded=done.excluded)


class _Counts:
    """Bytes and ids as the documents are read.

    Attributes:
        bytes: of counted text. excluded: ids not counted. position: in the file.
    """

    def __init__(self) -> None:
        self.bytes = self.excluded = self.position = 0
        self._ids = 0

    def text_ids(self, model: LLM, document: Document) -> Iterator[int]:
        """Ids of a text, without the special tokens that the tokenizer puts around it."""
        whole = bool(model.tokenizer.prefix_ids)
        for piece, position in document.pieces:
            self.position = position
            ids = model.tokenize(piece, add_special_tokens=False)
            self.bytes += len(piece.encode("utf-8", "replace"))
            if ids and not whole:
                self.bytes -= len(model.tokenizer.piece_bytes(ids[0]))  # the excluded id
                whole = True
            self._ids += len(ids)
            yield from ids

    def chat_ids(self, model: LLM, document: Document) -> Iterable[int]:
        """Ids of a conversation; markup is no text."""
        self.position = document.position
        ids = model.encode_chat(document.messages or ())
        tokenizer = model.tokenizer
        self.bytes += sum(len(tokenizer.piece_bytes(i)) for i in ids[1:] if i not in tokenizer.special_ids)
        self._ids += len(ids)
        return ids

    def close_document(self, counted: int) -> None:
        """A document has ended of whose ids so many were counted."""
        self.excluded += self._ids - counted
        self._ids = 0


def check_tokenizers(model: LLM, other: LLM) -> None:
    """Raises `UsageError` where an id does not mean the same to both models."""
    mine, theirs = model.tokenizer, other.tokenizer
    hint = "KL divergence needs one tokenizer; bits per byte of two runs can be compared."
    common = min(mine.vocab_size, theirs.vocab_size)
    different = next((i for i in range(common) if mine.piece_bytes(i) != theirs.piece_bytes(i)), None)
    if different is not None or mine.vocab_size != theirs.vocab_size:
        found = (
            f"{theirs.vocab_size} ids" if different is None else f"id {different}: {theirs.piece_bytes(different)!r}"
        )
        allowed = f"{mine.vocab_size} ids" if different is None else repr(mine.piece_bytes(different))
        raise UsageError(
            "the tokenizers of the two models differ", key="against", found=found, allowed=allowed, hint=hint
        )
    if mine.encode(_SAMPLE) != theirs.encode(_SAMPLE):
        raise UsageError("the tokenizers of the two models cut a text differently", key="against", hint=hint)

"""Token ids to text, one token at a time: only whole characters that nothing can change any more."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class TextStream:
    """An incremental decoder; `"".join(pushes) + finish()` equals `Tokenizer.decode` of all ids.

    Bytes that are no UTF-8 become U+FFFD, one for each maximal ill-formed part (Unicode 15, table 3-8).

    Args:
        piece_bytes: the bytes of a token id.
        skip: ids that give no text.
        strip: how many leading spaces of the whole text to drop (the dummy prefix); -1 drops all.
        separator: put between tokens, for tokenizers without a decoder.
    """

    def __init__(
        self,
        piece_bytes: Callable[[int], bytes],
        *,
        skip: frozenset[int] = frozenset(),
        strip: int = 0,
        separator: bytes = b"",
    ) -> None:
        self._piece_bytes = piece_bytes
        self._skip = skip
        self._strip = strip
        self._separator = separator
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, often empty in the middle of a character."""
        piece = self._piece_bytes(token_id)
        if token_id in self._skip:
            return ""
        if self._strip and piece:
            kept = piece.lstrip(b" ") if self._strip < 0 else piece.removeprefix(b" ")
            self._strip = self._strip if self._strip < 0 and not kept else 0
            piece = kept
        if self._separator and not self._first:
            piece = self._separator + piece
        self._first = False
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """What an unfinished character at the end leaves: U+FFFD or nothing."""
        return self._utf8.decode(b"", final=True)

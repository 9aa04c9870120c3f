"""A byte-level BPE that begins without the `tokenizers` library: from tables that a start before has made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from edgellm.text.added import AddedToken, Segment
from edgellm.text.bpe_tables import BpeTables
from edgellm.text.library_tokenizer import LibraryTokenizer
from edgellm.text.pieces import PieceDecoder
from edgellm.text.tokenizer import Tokenizer
from edgellm.text.tokens_config import TokensConfig

#: Longer texts are worth the library's start: of this one every word costs 20 us at first.
MAX_CHARACTERS = 8192
_PROBED_TOKENS = 1000


class QuickTokenizer(Tokenizer):
    """Gives the ids of `LibraryTokenizer`: short texts in ASCII by tables, others by the library, made when needed.

    Args:
        tables: of the file.
        kind, file, rows, config: as for `LibraryTokenizer`.
        library: makes that one of the same bytes.
    """

    def __init__(
        self,
        tables: BpeTables,
        *,
        kind: str,
        file: str,
        rows: int | None,
        config: TokensConfig,
        library: Callable[[], LibraryTokenizer],
    ) -> None:
        self.kind = kind
        self._tables = tables
        self._make_library: Callable[[], LibraryTokenizer] | None = library
        self._library: LibraryTokenizer | None = None
        self._lock = threading.Lock()
        facts = tables.facts
        self._decoder = PieceDecoder(facts.decoder, file)
        super().__init__(file=file, size=facts.size, rows=rows, added=facts.added, strings=config.strings)
        self._strip, self._separator = self._decoder.strip, self._decoder.separator
        self._prefix, self._suffix = config.surrounding(facts.before, facts.after, self.bos_token_id, self.eos_token_id)

    def _encode_text(self, text: str) -> list[int]:
        ids = self._quick_ids([text], lambda: self._matcher.split([Segment(text)]))
        return self._whole()._encode_text(text) if ids is None else ids

    def _encode_parts(self, parts: Sequence[str | AddedToken]) -> list[int]:
        ids = self._quick_ids([part for part in parts if isinstance(part, str)], lambda: parts)
        return self._whole()._encode_parts(parts) if ids is None else ids

    def _quick_ids(self, texts: Sequence[str], parts: Callable[[], Sequence[str | AddedToken]]) -> list[int] | None:
        """Ids by the tables, None where it takes the library or there is one already."""
        if self._library is not None or sum(map(len, texts)) > MAX_CHARACTERS:
            return None
        ids: list[int] = []
        for part in parts():
            found = [part.id] if isinstance(part, AddedToken) else self._tables.encode(part)
            if found is None:
                return None
            ids += found
        return ids

    def _whole(self) -> LibraryTokenizer:
        with self._lock:
            if self._library is None:
                self._library = self._make_library()
                self._make_library = None  # with the bytes of the file
            return self._library

    def _piece_id(self, text: str) -> int | None:
        return self._tables.token_id(text)

    def _read_piece(self, token_id: int) -> bytes:
        return self._decoder(self._tables.token(token_id))


def agree(tables: BpeTables, library: LibraryTokenizer) -> bool:
    """Whether both give the same ids, on every character and on tokens from all over the vocabulary."""
    quick = QuickTokenizer(
        tables, kind=library.kind, file=library.file, rows=None, config=TokensConfig(), library=lambda: library
    )
    step = max(library.vocab_size // _PROBED_TOKENS, 1)
    pieces = [library.piece_bytes(token_id) for token_id in range(0, library.vocab_size, step)]
    tokens = [piece.decode() for piece in pieces if piece.isascii()]
    characters = "".join(sorted(tables.characters))
    for text in (characters, characters[::-1], "".join(tokens), " ".join(tokens), "'".join(tokens)):
        for begin in range(0, len(text), MAX_CHARACTERS):
            probe = text[begin : begin + MAX_CHARACTERS]
            if quick.encode(probe) != library.encode(probe):
                return False
    return True

"""One interface for every kind of tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from edgellm.errors import TokenizerError, UsageError
from edgellm.text.added import AddedToken, Segment, TokenBreaker, TokenMatcher
from edgellm.text.boundary import clean_text
from edgellm.text.stream import TextStream


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
        kind: the files it was read from: "tokenizer.json", "sentencepiece" or "vocab.json+merges.txt".
        file: how errors name that file.
        vocab_size: number of ids, the highest id + 1.
        added_tokens: the tokens found in text before the model of the tokenizer sees it.
        special_tokens: ids of all added tokens by their text.
        special_ids: ids of those that are no text for people, such as `<|im_end|>`.
        token_strings: for chat templates: `bos_token`, `eos_token`, ... as far as the model names them.
        bos_token_id, eos_token_id, pad_token_id, unk_token_id: ids of these, None where the model names none.
    """

    kind: str

    def __init__(
        self, *, file: str, size: int, rows: int | None, added: Iterable[AddedToken], strings: Mapping[str, str]
    ) -> None:
        self.file = file
        self.added_tokens = tuple(sorted(added, key=lambda token: token.id))
        self.vocab_size = max([size, *(token.id + 1 for token in self.added_tokens)])
        if rows is not None and self.vocab_size > rows:
            raise TokenizerError(
                "the tokenizer has ids beyond the embedding rows",
                file=file,
                found=f"ids up to {self.vocab_size - 1}",
                allowed=f"up to {rows - 1}",
                hint="Tokenizer and weights are from different models.",
            )
        self._rows = rows or self.vocab_size
        self.special_tokens = {token.content: token.id for token in self.added_tokens}
        self.special_ids = frozenset(token.id for token in self.added_tokens if token.special)
        self.token_strings = dict(strings)
        self.bos_token_id = self._named_id("bos_token")
        self.eos_token_id = self._named_id("eos_token")
        self.pad_token_id = self._named_id("pad_token")
        self.unk_token_id = self._named_id("unk_token")
        self._prefix: list[int] = []
        self._suffix: list[int] = []
        self._strip = 0
        self._separator = b""
        self._texts = {token.id: token.content.encode() for token in self.added_tokens}
        self._pieces: dict[int, bytes] = {}

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """The ids that `encode` puts before a text, usually BOS or nothing."""
        return tuple(self._prefix)

    @cached_property
    def breaker(self) -> TokenBreaker:
        """Marks this tokenizer's added tokens in message text."""
        return TokenBreaker(self.added_tokens)

    @cached_property
    def _matcher(self) -> TokenMatcher:
        return TokenMatcher(self.added_tokens)

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`.

        Args:
            text: up to 16 MiB; lone surrogates count as U+FFFD.
            add_special_tokens: put the ids around it that the model asks for, usually BOS.
            parse_special: find added tokens in the text; False spells them out.

        Raises:
            UsageError: the text is too long.
            TokenizerError: the tokenizer library fails.
        """
        ids = self._encode_text(clean_text(text)) if parse_special else self.encode_segments([Segment(text, False)])
        return [*self._prefix, *ids, *self._suffix] if add_special_tokens else ids

    def encode_segments(self, segments: Sequence[Segment]) -> list[int]:
        """Token ids of the joined text; added tokens only as each segment allows, never across two. As `encode`."""
        whole = clean_text("".join(segment.text for segment in segments))
        parts = self._matcher.split([Segment(clean_text(s.text), s.parse_special) for s in segments])
        if parts == self._matcher.split([Segment(whole)]):  # no text spells an added token
            ids = self._encode_text(whole)
            # A normalizer can turn other text, such as full-width brackets, into the spelling of an added token.
            if [i for i in ids if i in self._texts] == [part.id for part in parts if isinstance(part, AddedToken)]:
                return ids
        return self._encode_parts(parts)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of `ids`. Raises `UsageError` for an id that is none of the model's."""
        stream = self.decoder(skip_special_tokens=skip_special_tokens)
        return "".join([*(stream.push(token_id) for token_id in ids), stream.finish()])

    def decoder(self, *, skip_special_tokens: bool = True) -> TextStream:
        """A decoder for one stream of ids."""
        skip = self.special_ids if skip_special_tokens else frozenset()
        return TextStream(self.piece_bytes, skip=skip, strip=self._strip, separator=self._separator)

    def piece_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for, maybe a part of a character; added tokens give their text.

        Ids between the tokenizer's and the embedding's size have no text. Raises `UsageError` for ids beyond.
        """
        piece = self._pieces.get(token_id)
        if piece is None:
            if not 0 <= token_id < self._rows:
                raise UsageError("no such token id", found=token_id, allowed=f"0 to {self._rows - 1}")
            token_id = int(token_id)
            piece = self._texts[token_id] if token_id in self._texts else self._read_piece(token_id)
            self._pieces[token_id] = piece
        return piece

    def _named_id(self, name: str) -> int | None:
        text = self.token_strings.get(name)
        if text is None:
            return None
        return self.special_tokens[text] if text in self.special_tokens else self._piece_id(text)

    @abstractmethod
    def _piece_id(self, text: str) -> int | None:
        """The id of a piece of the model, None where there is none."""

    @abstractmethod
    def _read_piece(self, token_id: int) -> bytes:
        """The bytes of a token of the model; empty where it has no text."""

    @abstractmethod
    def _encode_text(self, text: str) -> list[int]:
        """Ids of `text` with every added token in it parsed."""

    @abstractmethod
    def _encode_parts(self, parts: Sequence[str | AddedToken]) -> list[int]:
        """Ids of the parts; texts among them may spell added tokens and stay text."""

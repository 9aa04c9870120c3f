"""Tokenizers that the `tokenizers` library runs, from tokenizer.json or from vocab.json and merges.txt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgellm.errors import TokenizerError
from edgellm.text.added import AddedToken, enclose
from edgellm.text.boundary import library_errors
from edgellm.text.pieces import PieceDecoder
from edgellm.text.tokenizer import Tokenizer
from edgellm.text.tokens_config import TokensConfig

if TYPE_CHECKING:
    import tokenizers


class LibraryTokenizer(Tokenizer):
    """A byte-level BPE, Metaspace BPE, Unigram or WordLevel tokenizer of the `tokenizers` library.

    A second library object shares the model but knows its added tokens only between the noncharacters `OPEN` and
    `CLOSE`: so the library itself treats everything around true added tokens (stripping, normalizing a piece at a
    time, the prefix of the first word), while nothing a person writes can be one.

    `size` is the highest id, + 1, of a library in which no two tokens share one. `may_panic` says that an expression of
    the model may backtrack until the library gives up, see `panics`.
    """

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        *,
        kind: str,
        file: str,
        size: int,
        rows: int | None,
        config: TokensConfig,
        decoder: Any,
        may_panic: bool = False,
    ) -> None:
        self.kind = kind
        self._may_panic = may_panic
        self._library = library
        with library_errors(file, "added tokens cannot be added"):
            _add_missing(library, config, file)
        added = [_described(token_id, token) for token_id, token in library.get_added_tokens_decoder().items()]
        self._decoder = PieceDecoder(decoder, file)
        super().__init__(file=file, size=size, rows=rows, added=added, strings=config.strings)
        self._strip = self._decoder.strip
        self._separator = self._decoder.separator
        for token in added:
            if library.token_to_id(token.content) != token.id or library.id_to_token(token.id) != token.content:
                raise TokenizerError("id and text of an added token disagree", file=file, key=token.content)
        before, after = self.template_ids()
        self._prefix, self._suffix = config.surrounding(before, after, self.bos_token_id, self.eos_token_id)
        self._spelled: tokenizers.Tokenizer | None = None
        self._true_ids: dict[int, int] = {}

    def template_ids(self) -> tuple[list[int], list[int]]:
        """The ids that the post-processor puts before and after any text."""
        with library_errors(self.file, "a first text cannot be encoded", may_panic=self._may_panic):
            encoding = self._library.encode("a", add_special_tokens=True)
            mask = encoding.special_tokens_mask
            inner = len(self._library.encode("a", add_special_tokens=False).ids)
        start = mask.index(0) if 0 in mask else len(mask) - inner
        return encoding.ids[:start], encoding.ids[start + inner :]

    def _encode_text(self, text: str) -> list[int]:
        with library_errors(self.file, "the text cannot be encoded", may_panic=self._may_panic):
            return self._library.encode(text, add_special_tokens=False).ids

    def _encode_parts(self, parts: Sequence[str | AddedToken]) -> list[int]:
        with library_errors(self.file, "the text cannot be encoded", may_panic=self._may_panic):
            if self._spelled is None:
                self._spelled, self._true_ids = self._enclosed_twin()
            ids = self._spelled.encode(enclose(parts), add_special_tokens=False).ids
        return [self._true_ids.get(token_id, token_id) for token_id in ids]

    def _enclosed_twin(self) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
        import tokenizers

        twin = tokenizers.Tokenizer(self._library.model)
        if self._library.normalizer is not None:
            twin.normalizer = self._library.normalizer
        if self._library.pre_tokenizer is not None:
            twin.pre_tokenizer = self._library.pre_tokenizer
        ids = {enclose([token]): token.id for token in self.added_tokens}
        tokens = [dataclasses.replace(token, normalized=False) for token in self.added_tokens]
        twin.add_tokens([_library_token(token, enclose([token])) for token in tokens])
        return twin, {token_id: ids[content] for token_id, content in _contents(twin).items()}

    def _piece_id(self, text: str) -> int | None:
        return self._library.token_to_id(text)

    def _read_piece(self, token_id: int) -> bytes:
        token = self._library.id_to_token(token_id)
        return b"" if token is None else self._decoder(token)


def _add_missing(library: tokenizers.Tokenizer, config: TokensConfig, file: str) -> None:
    """Adds the added tokens that only the config files name."""
    known = set(_contents(library).values())
    for token in config.added:
        if token.content not in known:
            library.add_tokens([_library_token(token, token.content)])
        if library.token_to_id(token.content) != token.id:
            raise TokenizerError(
                "an added token of tokenizer_config.json cannot have its id",
                file=file,
                key=token.content,
                found=token.id,
                allowed=str(library.token_to_id(token.content)),
            )
        known.add(token.content)


def _library_token(token: AddedToken, content: str) -> tokenizers.AddedToken:
    import tokenizers

    return tokenizers.AddedToken(
        content,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
        normalized=token.normalized,
        special=token.special,
    )


def _contents(library: tokenizers.Tokenizer) -> dict[int, str]:
    return {token_id: token.content for token_id, token in library.get_added_tokens_decoder().items()}


def _described(token_id: int, token: tokenizers.AddedToken) -> AddedToken:
    return AddedToken(
        token_id, token.content, token.special, token.lstrip, token.rstrip, token.single_word, token.normalized
    )

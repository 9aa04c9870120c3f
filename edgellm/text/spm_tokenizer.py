"""Tokenizers that sentencepiece runs, from tokenizer.model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from edgellm.errors import TokenizerError
from edgellm.sidefiles import SideFiles
from edgellm.text import spm_proto
from edgellm.text.added import AddedToken, Segment, is_markup
from edgellm.text.boundary import check_charsmap, library_errors
from edgellm.text.tokenizer import Tokenizer
from edgellm.text.tokens_config import TokensConfig

if TYPE_CHECKING:
    import sentencepiece

MODEL_FILE = "tokenizer.model"
_SPACE_MARK = "▁"


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model with the added tokens around it that Hugging Face's LlamaTokenizer knows.

    sentencepiece spells control symbols out; the layer above cuts the text at them first. Every stretch between gets
    the dummy prefix where the config is `legacy` (the default), otherwise only the text's very first. User-defined
    symbols are added tokens here where they are markup; others, such as runs of white space, stay with sentencepiece.
    BOS comes first unless `add_bos_token` is false.
    """

    kind = "sentencepiece"

    def __init__(self, data: bytes, *, file: str, rows: int | None, config: TokensConfig) -> None:
        model = spm_proto.parse_spm(data, file)
        check_charsmap(model.charsmap, file)
        plain = bytearray(data)
        added = {token.content: token for token in config.added}
        for token_id, (text, kind) in enumerate(model.pieces):
            if kind != spm_proto.CONTROL and not (kind == spm_proto.USER_DEFINED and is_markup(text)):
                continue
            added.setdefault(text, AddedToken(token_id, text, special=kind == spm_proto.CONTROL))
            plain[model.type_at[token_id]] = spm_proto.CONTROL  # sentencepiece never finds a control symbol in text
        self._model = model
        self._prefixed = _processor(bytes(plain), file)
        prefixes = model.add_dummy_prefix and config.flag("add_prefix_space", True)
        self._unprefixed = (
            _processor(bytes(plain) + spm_proto.WITHOUT_DUMMY_PREFIX, file)
            if model.add_dummy_prefix
            else self._prefixed
        )
        if not prefixes:
            self._prefixed = self._unprefixed
        self._legacy = config.flag("legacy", True)
        if self._prefixed.get_piece_size() != len(model.pieces):
            raise TokenizerError("number of pieces is unclear", file=file, found=self._prefixed.get_piece_size())
        self._ids = {text: token_id for token_id, (text, _) in reversed([*enumerate(model.pieces)])}
        config.strings = {**self._own_strings(), **config.strings}
        for text in config.main_strings():
            if text in self._ids:
                added.setdefault(text, AddedToken(self._ids[text], text))
        _check_ids(added.values(), model, file)
        super().__init__(file=file, size=len(model.pieces), rows=rows, added=added.values(), strings=config.strings)
        self._strip = (-1 if model.remove_extra_whitespaces else 1) if prefixes else 0
        if config.flag("add_bos_token", True) and self.bos_token_id is not None:
            self._prefix = [self.bos_token_id]
        if config.flag("add_eos_token", False) and self.eos_token_id is not None:
            self._suffix = [self.eos_token_id]

    def _own_strings(self) -> dict[str, str]:
        """The special tokens that the model itself names."""
        own = self._prefixed
        ids = {
            "bos_token": own.bos_id(),
            "eos_token": own.eos_id(),
            "unk_token": own.unk_id(),
            "pad_token": own.pad_id(),
        }
        return {name: self._model.pieces[token_id][0] for name, token_id in ids.items() if token_id >= 0}

    def _encode_text(self, text: str) -> list[int]:
        return self._encode_parts(self._matcher.split([Segment(text)]))

    def _encode_parts(self, parts: Sequence[str | AddedToken]) -> list[int]:
        ids: list[int] = []
        with library_errors(self.file, "the text cannot be encoded"):
            for number, part in enumerate(parts):
                if isinstance(part, AddedToken):
                    ids.append(part.id)
                    continue
                before, after = parts[number - 1] if number else None, parts[number + 1 : number + 2]
                if isinstance(before, AddedToken) and before.rstrip:
                    part = part.lstrip()
                if after and after[0].lstrip:
                    part = part.rstrip()
                processor = self._prefixed if self._legacy or not number else self._unprefixed
                ids.extend(processor.encode(part) if part else [])
        return ids

    def _piece_id(self, text: str) -> int | None:
        return self._ids.get(text)

    def _read_piece(self, token_id: int) -> bytes:
        if token_id >= len(self._model.pieces):
            return b""
        text, kind = self._model.pieces[token_id]
        if kind == spm_proto.BYTE:
            return bytes([int(text[3:5], 16)])
        return text.replace(_SPACE_MARK, " ").encode()


def load_sentencepiece(files: SideFiles, data: bytes, config: TokensConfig, rows: int | None) -> SentencePieceTokenizer:
    """The tokenizer of a tokenizer.model. Raises `TokenizerError`."""
    return SentencePieceTokenizer(data, file=files.locate(MODEL_FILE), rows=rows, config=config)


def _processor(data: bytes, file: str) -> sentencepiece.SentencePieceProcessor:
    import sentencepiece

    with library_errors(file, "cannot be read as a sentencepiece model"):
        return sentencepiece.SentencePieceProcessor(model_proto=data)


def _check_ids(added: Iterable[AddedToken], model: spm_proto.SpmModel, file: str) -> None:
    for token in added:
        if token.id < len(model.pieces) and model.pieces[token.id][0] != token.content:
            raise TokenizerError(
                "id and text of an added token disagree",
                file=file,
                key=token.content,
                found=f"id {token.id} is {model.pieces[token.id][0]!r}",
            )

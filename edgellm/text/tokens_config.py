"""What stands about tokens in tokenizer_config.json, special_tokens_map.json and added_tokens.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgellm.errors import TokenizerError
from edgellm.sidefiles import SideFiles, read_side_json
from edgellm.text.added import AddedToken

CONFIG_FILE = "tokenizer_config.json"
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
_MAX_TOKEN_LENGTH = 512
_MAX_ID = 1 << 22


@dataclass
class TokensConfig:
    """The settings of tokenizer_config.json that decide ids.

    Attributes:
        values: the whole of tokenizer_config.json.
        strings: texts of `bos_token`, `eos_token`, ...
        added: added tokens with their ids, those of the older added_tokens.json included.
    """

    values: dict[str, Any] = field(default_factory=dict)
    strings: dict[str, str] = field(default_factory=dict)
    added: list[AddedToken] = field(default_factory=list)

    def main_strings(self) -> list[str]:
        """The texts of BOS, EOS and UNK, which are special whether declared or not.

        Not the others: there are models whose `pad_token` is a plain quotation mark.
        """
        names = ("bos_token", "eos_token", "unk_token")
        return list(dict.fromkeys(self.strings[name] for name in names if name in self.strings))

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        return value if isinstance(value, bool) else default

    def surrounding(
        self, before: list[int], after: list[int], bos: int | None, eos: int | None
    ) -> tuple[list[int], list[int]]:
        """The ids around any text: those of the post-processor, else what `add_bos_token`, `add_eos_token` ask for."""
        if not before and bos is not None and self.flag("add_bos_token", False):
            before = [bos]
        if not after and eos is not None and self.flag("add_eos_token", False):
            after = [eos]
        return before, after


def read_tokens_config(files: SideFiles) -> TokensConfig:
    """Raises `TokenizerError` (`ModelError` for damaged JSON) that names file and key."""
    values = read_side_json(files, CONFIG_FILE) or {}
    config = TokensConfig(values)
    for source, name in ((values, CONFIG_FILE), (None, "special_tokens_map.json")):
        table = read_side_json(files, name) or {} if source is None else source
        for key in _NAMES:
            text = _content(table.get(key), files.locate(name), key)
            if text:
                config.strings.setdefault(key, text)
    config.added = _added_tokens(files, config)
    return config


def _added_tokens(files: SideFiles, config: TokensConfig) -> list[AddedToken]:
    file = files.locate(CONFIG_FILE)
    table = config.values.get("added_tokens_decoder") or {}
    if not isinstance(table, dict):
        raise TokenizerError("must be an object", file=file, key="added_tokens_decoder", found=type(table).__name__)
    tokens = {}
    for key, entry in table.items():
        where = f"added_tokens_decoder.{key}"
        if not (key.isascii() and key.isdigit() and len(key) < 8 and int(key) < _MAX_ID):
            raise TokenizerError("token id out of range", file=file, key=where, allowed=f"0 to {_MAX_ID - 1}")
        text = _content(entry, file, where)
        if text is None or not isinstance(entry, dict):
            raise TokenizerError("must be an object with the key content", file=file, key=where, found=entry)
        flags = {name: entry.get(name, False) is True for name in (*_FLAGS, "special")}
        tokens[text] = AddedToken(int(key), text, **flags)
    older = read_side_json(files, "added_tokens.json") or {}
    for text, token_id in older.items():
        if type(token_id) is not int or not 0 <= token_id < _MAX_ID or not 0 < len(text) <= _MAX_TOKEN_LENGTH:
            raise TokenizerError("must map a text to a token id", file=files.locate("added_tokens.json"), key=text)
        tokens.setdefault(text, AddedToken(token_id, text, special=text in config.strings.values()))
    by_id: dict[int, str] = {}
    for token in tokens.values():
        if by_id.setdefault(token.id, token.content) != token.content:
            raise TokenizerError(
                "two added tokens have the same id", file=file, key="added_tokens_decoder", found=token.id
            )
    return sorted(tokens.values(), key=lambda token: token.id)


def _content(entry: Any, file: str, key: str) -> str | None:
    text = entry.get("content") if isinstance(entry, dict) else entry
    if text is None or text == "":
        return None
    if not isinstance(text, str) or len(text) > _MAX_TOKEN_LENGTH:
        raise TokenizerError(
            "must be the text of a token",
            file=file,
            key=key,
            found=text,
            allowed=f"up to {_MAX_TOKEN_LENGTH} characters",
        )
    return text

"""A byte-level BPE of a tokenizer.json as sorted tables, which a start maps and need not build.

The `tokenizers` library takes 0.25 to 0.4 s for a file of 128,000 tokens, and lets nobody else's Python run meanwhile;
these tables are read in 10 ms and looked up by bisection, 1 us each, which is enough for what a person types. They know
texts in ASCII alone: all that Unicode decides there, classes and normal forms, is the same in every version of it.

    line of JSON    what is in `BpeTables`, `names` of added tokens and the items of each table
    keys            uint64 [merges], left << 32 | right, ascending
    merged          uint64 [merges], rank << 32 | id of the merged token
    offsets         uint32 [ids + 1], where each id's text begins in `texts`
    order           uint32 [tokens], ids by their texts, ascending
    texts           UTF-8, all tokens as the file spells them
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from edgellm.text.added import AddedToken
from edgellm.text.bpe_words import WordCutter, expressions_of
from edgellm.text.pieces import byte_level_bytes

#: Longer words are left to the library: to merge one takes the square of its length.
MAX_WORD = 128
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
_TABLES = {"keys": np.uint64, "merged": np.uint64, "offsets": np.uint32, "order": np.uint32, "texts": np.uint8}
_ALIGNMENT = 8
_NONE = 1 << 64  # above every rank
_LOW = (1 << 32) - 1
_MAX_IDS = 1 << 24
_REMEMBERED_WORDS = 4096


@dataclass(frozen=True)
class BpeFacts:
    """What is known of a tokenizer beside its tables.

    Attributes:
        size: highest id, those of added tokens included, + 1.
        decoder: the file's entry.
        added: added tokens.
        before, after: ids that the post-processor puts around a text.
        expressions: see `bpe_words`.
        whole_words: a word that is a token is not merged.
    """

    size: int
    decoder: dict[str, Any] | None
    added: tuple[AddedToken, ...]
    before: list[int]
    after: list[int]
    expressions: list[str]
    whole_words: bool


class BpeTables:
    """Looks tokens up and encodes short texts in ASCII.

    Args:
        facts: beside the tables.
        tables: by name, see the module.

    Attributes:
        facts: beside the tables.
        characters: those of ASCII that have a token.

    Raises:
        ValueError: tables that do not belong together.
    """

    def __init__(self, facts: BpeFacts, tables: dict[str, np.ndarray]) -> None:
        self.facts = facts
        self._arrays = tables
        _require_whole(facts, tables)
        # a memoryview gives Python's integers, in a third of the time that an array takes
        self._keys, self._merged = memoryview(tables["keys"]), memoryview(tables["merged"])
        self._offsets, self._order = memoryview(tables["offsets"]), memoryview(tables["order"])
        self._texts = tables["texts"].tobytes()
        self._cut = WordCutter(facts.expressions)
        shown = {byte: character for character, byte in byte_level_bytes().items()}
        self._spelling = {byte: shown[byte] for byte in range(128)}
        ids = {chr(byte): self.token_id(shown[byte]) for byte in range(128)}
        self._ids = {character: token_id for character, token_id in ids.items() if token_id is not None}
        self.characters = frozenset(self._ids)
        self._word_ids = lru_cache(_REMEMBERED_WORDS)(self._merge)

    def encode(self, text: str) -> list[int] | None:
        """Ids of a text without added tokens; None where a word is too long, or it is not all of `characters`."""
        if not self.characters.issuperset(text):
            return None
        words = self._cut(text)
        if any(len(word) > MAX_WORD for word in words):
            return None
        return [token_id for word in words for token_id in self._word_ids(word)]

    def token(self, token_id: int) -> str:
        """How the file spells a token; empty for an id without one."""
        if token_id + 1 >= len(self._offsets):
            return ""
        return self._text(token_id).decode()

    def token_id(self, text: str) -> int | None:
        """The id of a token that is spelled so, None where there is none."""
        wanted = text.encode()
        at = bisect_left(self._order, wanted, key=self._text)
        found = at < len(self._order) and self._text(self._order[at]) == wanted
        return self._order[at] if found else None

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads."""
        header = {**dataclasses.asdict(self.facts), "items": [len(table) for table in self._arrays.values()]}
        line = json.dumps(header).encode() + b"\n"
        parts = [line, b" " * (-len(line) % _ALIGNMENT)]
        for table in self._arrays.values():
            parts += [table.tobytes(), bytes(-table.nbytes % _ALIGNMENT)]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> BpeTables:
        """The tables in `data`. Raises `ValueError`, `TypeError` or `KeyError` for bytes that are none."""
        line = data[: data.index(b"\n") + 1]
        header = json.loads(line)
        items = header.pop("items")
        added = tuple(AddedToken(**token) for token in header.pop("added"))
        at, tables = len(line) + -len(line) % _ALIGNMENT, {}
        for (name, dtype), count in zip(_TABLES.items(), items, strict=True):
            tables[name] = np.frombuffer(data, dtype, count, at)
            at += tables[name].nbytes + -tables[name].nbytes % _ALIGNMENT
        return cls(BpeFacts(added=added, **header), tables)

    def _text(self, token_id: int) -> bytes:
        return self._texts[self._offsets[token_id] : self._offsets[token_id + 1]]

    def _merge(self, word: str) -> list[int]:
        """Always the pair of the lowest rank, the leftmost of equal ones."""
        if self.facts.whole_words:
            whole = self.token_id(word.translate(self._spelling))
            if whole is not None:
                return [whole]
        ids = [self._ids[character] for character in word]
        pairs = list(itertools.starmap(self._pair, itertools.pairwise(ids)))
        while pairs and (best := min(pairs)) != _NONE:
            at = pairs.index(best)
            ids[at : at + 2] = [best & _LOW]
            del pairs[at]
            if at:
                pairs[at - 1] = self._pair(ids[at - 1], ids[at])
            if at < len(pairs):
                pairs[at] = self._pair(ids[at], ids[at + 1])
        return ids

    def _pair(self, left: int, right: int) -> int:
        """rank << 32 | id of what the two become."""
        key = left << 32 | right
        at = bisect_left(self._keys, key)
        return self._merged[at] if at < len(self._keys) and self._keys[at] == key else _NONE


def _require_whole(facts: BpeFacts, tables: dict[str, np.ndarray]) -> None:
    """Raise `ValueError` where a look-up could leave the tables or give an id that is none."""
    keys, merged, offsets, order, texts = (tables[name] for name in _TABLES)
    ids = len(offsets) - 1
    fits = len(keys) == len(merged) and 0 < ids <= facts.size <= _MAX_IDS
    fits = fits and offsets[-1] == len(texts) and bool(np.all(offsets[1:] >= offsets[:-1]))
    fits = fits and int(order.max(initial=0)) < ids and int((merged & np.uint64(_LOW)).max(initial=0)) < ids
    if not fits or not all(0 <= token.id < facts.size for token in facts.added):
        raise ValueError("tables that do not belong together")


def tables_of(
    table: dict[str, Any], size: int, added: tuple[AddedToken, ...], before: list[int], after: list[int]
) -> BpeTables | None:
    """The tables of a tokenizer.json that the library took; None for one that is of another kind.

    Args:
        table: the file.
        size, added, before, after: see `BpeFacts`.
    """
    model, expressions = table.get("model"), expressions_of(table.get("pre_tokenizer"))
    if expressions is None or not _is_plain(model) or not _keeps_ascii(table.get("normalizer"), added):
        return None
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return None
    facts = BpeFacts(
        size, table.get("decoder"), added, before, after, expressions, model.get("ignore_merges", False) is True
    )
    return BpeTables(facts, _sorted_tables(model["vocab"], model["merges"]))


def _is_plain(model: Any) -> bool:
    match model:
        case {"type": "BPE", "vocab": {}, "merges": [*_]}:
            return not any(map(model.get, ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")))
    return False


def _keeps_ascii(normalizer: Any, added: tuple[AddedToken, ...]) -> bool:
    """Whether ASCII texts stay what they are; other characters in an added token could become ASCII."""
    if normalizer is None:
        return True
    return normalizer.get("type") in _FORMS and all(token.content.isascii() for token in added if token.normalized)


def _sorted_tables(vocabulary: dict[str, int], merges: list[Any]) -> dict[str, np.ndarray]:
    pairs = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        pairs[vocabulary[left] << 32 | vocabulary[right]] = rank << 32 | vocabulary[left + right]
    keys, merged = np.array(list(pairs), np.uint64), np.array(list(pairs.values()), np.uint64)
    by_key = np.argsort(keys)
    texts = {token_id: text.encode() for text, token_id in vocabulary.items()}
    of_ids = [texts.get(token_id, b"") for token_id in range(max(texts) + 1)]
    return {
        "keys": keys[by_key],
        "merged": merged[by_key],
        "offsets": np.cumsum([0, *map(len, of_ids)], dtype=np.uint32),
        "order": np.array(sorted(texts, key=texts.__getitem__), np.uint32),
        "texts": np.frombuffer(b"".join(of_ids), np.uint8),
    }

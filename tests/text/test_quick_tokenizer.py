"""A start from tables gives the library's ids on any text, and what the tables cannot do is left to the library."""

from __future__ import annotations

import itertools
import json
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgellm.errors import TokenizerError
from edgellm.sidefiles import FolderFiles, SideFiles
from edgellm.text import Segment, library_files, load_tokenizer, quick_tokenizer
from edgellm.text.bpe_words import LLAMA3_WORDS, QWEN2_WORDS
from edgellm.text.library_tokenizer import LibraryTokenizer
from edgellm.text.quick_tokenizer import MAX_CHARACTERS, QuickTokenizer
from tests.text.conftest import QWEN_CONFIG, byte_level_json, json_files, llama_json
from tests.text.corpus import SAMPLES, SENTENCES, shared

ASCII = "".join(map(chr, range(128)))
TEXTS = [
    *SAMPLES,
    *SENTENCES[:5],
    ASCII,
    ASCII[::-1],
    "".join(first + second for first, second in itertools.product(ASCII, repeat=2))[:MAX_CHARACTERS],
    "a" * 100 + " " * 100 + "!" * 100,
    "a" * 1000,
    "robot " * 2000,
    "We'LL see: it's HE'S, they'RE'd; 'tis 12345678 90\t\t\r\n \r\n  \n",
    "<|im_start|>user\nHello<|im_end|>\n <think>x</think><|im_star <|im_end|><|im_end|>",
    "Kelvin \u212a, ellipsis \u2026, e\u0301",
]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def split(pattern: str, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


KNOWN = {
    "gpt2": WORDS,
    "one piece": BYTE_LEVEL,
    "llama3": sequence(split(LLAMA3_WORDS), BYTE_LEVEL),
    "qwen2": sequence(split(QWEN2_WORDS), BYTE_LEVEL),
    "digits": sequence({"type": "Digits", "individual_digits": True}, WORDS),
    "numbers": sequence({"type": "Digits", "individual_digits": False}, WORDS),
}


def both(files: SideFiles) -> tuple[QuickTokenizer, LibraryTokenizer]:
    """The tokenizers of the second and of the first start."""
    first, second = load_tokenizer(files), load_tokenizer(files)
    assert type(first) is LibraryTokenizer
    assert type(second) is QuickTokenizer
    return second, first


def with_words(pre_tokenizer: dict[str, Any], **model: Any) -> dict[str, Any]:
    table = byte_level_json()
    table["pre_tokenizer"] = pre_tokenizer
    table["model"] |= model
    return table


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and nothing may make a library's tokenizer any more."""

    def forbid() -> None:
        monkeypatch.setattr(library_files, "_load_library", lambda *_: pytest.fail("the library was asked"))

    return forbid


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("name", KNOWN)
def test_ids_are_the_librarys(name: str, whole_words: bool, notes: Path) -> None:
    files = json_files(with_words(KNOWN[name], ignore_merges=whole_words), tokenizer_config=QWEN_CONFIG)
    quick, library = both(files)
    for text in TEXTS:
        quick._library = None  # texts before may have made one
        quick._make_library = lambda: library
        for parse_special in (True, False):
            ids = quick.encode(text, parse_special=parse_special)
            assert ids == library.encode(text, parse_special=parse_special)
            assert quick.decode(ids) == library.decode(ids)
    segments = [Segment("<|im_start|>"), Segment("a <|im_end|> b", parse_special=False), Segment("<|im_end|>")]
    assert quick.encode_segments(segments) == library.encode_segments(segments)


def test_texts_at_random(notes: Path, no_library) -> None:
    quick, library = both(json_files(byte_level_json()))
    no_library()
    source, pieces = random.Random(5), ["robot", " the", "'s", "\n", "  ", "1000", "<think>", "<|im_end|>", *ASCII]
    for _ in range(300):
        text = "".join(source.choices(pieces, k=source.randrange(30)))
        assert quick.encode(text) == library.encode(text)
        assert quick.encode(text, parse_special=False) == library.encode(text, parse_special=False)


def test_what_is_known_of_both_is_the_same(notes: Path, no_library) -> None:
    table = byte_level_json()
    table["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [401], "tokens": ["<|im_start|>"]}},
    }
    quick, library = both(json_files(table, tokenizer_config={**QWEN_CONFIG, "unk_token": "a", "add_eos_token": True}))
    no_library()
    names = (
        "kind",
        "file",
        "vocab_size",
        "added_tokens",
        "special_tokens",
        "special_ids",
        "token_strings",
        "prefix_ids",
    )
    for name in (*names, "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        assert getattr(quick, name) == getattr(library, name), name
    assert library.prefix_ids == (401,)
    assert quick.encode("Hello")[-1] == quick.eos_token_id
    for token_id in range(library.vocab_size):
        assert quick.piece_bytes(token_id) == library.piece_bytes(token_id)


def test_config_files_decide_at_each_start(notes: Path) -> None:
    both(json_files(byte_level_json()))
    asks = json_files(byte_level_json(), tokenizer_config={**QWEN_CONFIG, "bos_token": "a", "add_bos_token": True})
    quick = load_tokenizer(asks)
    assert type(quick) is QuickTokenizer
    assert quick.prefix_ids == (quick.bos_token_id,)
    more = json_files(byte_level_json(), tokenizer_config={"added_tokens_decoder": {"405": {"content": "<|own|>"}}})
    assert load_tokenizer(more).encode("<|own|>") == [405]
    with pytest.raises(TokenizerError, match="beyond the embedding rows"):
        load_tokenizer(asks, vocab_size=quick.vocab_size - 1)


def reversed_words(table: dict) -> None:
    table["pre_tokenizer"] = sequence(split(r"\p{L}+"), BYTE_LEVEL)


def removed_spaces(table: dict) -> None:
    table["pre_tokenizer"] = sequence(split(QWEN2_WORDS, "Removed"), BYTE_LEVEL)


def prefixed(table: dict) -> None:
    table["pre_tokenizer"] = {**WORDS, "add_prefix_space": True}


def lower(table: dict) -> None:
    table["normalizer"] = {"type": "Lowercase"}


def stripping(table: dict) -> None:
    table["added_tokens"][0]["rstrip"] = True


def accented(table: dict) -> None:
    table["added_tokens"][-1] |= {"content": "\u0416\u0416", "normalized": True}


@pytest.mark.parametrize("change", [reversed_words, removed_spaces, prefixed, lower, stripping, accented])
def test_other_kinds_are_left_to_the_library(change, notes: Path) -> None:
    table = byte_level_json()
    change(table)
    files = json_files(table)
    assert type(load_tokenizer(files)) is LibraryTokenizer
    assert type(load_tokenizer(files)) is LibraryTokenizer
    assert not list(notes.glob("*.bpe"))


def test_characters_without_a_token_are_left_to_the_library(notes: Path) -> None:
    table = byte_level_json()
    vocabulary = table["model"]["vocab"]
    table["model"]["vocab"] = {"\u0400" if token == "\u0100" else token: number for token, number in vocabulary.items()}
    quick, library = both(json_files(table))
    assert quick.encode("robot") == library.encode("robot")
    assert quick._library is None
    assert quick.encode("ro\0bot") == library.encode("ro\0bot")
    assert quick._library is not None


def test_tables_that_disagree_are_not_kept(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_tokenizer.BpeTables, "encode", lambda self, text: [0])
    load_tokenizer(json_files(byte_level_json()))
    assert not list(notes.glob("*.bpe"))
    assert type(load_tokenizer(json_files(llama_json(legacy=True)))) is LibraryTokenizer


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "header", "tables", "ids"])
def test_damaged_tables_are_made_anew(damage: str, notes: Path) -> None:
    files = json_files(byte_level_json())
    load_tokenizer(files)
    (path,) = notes.glob("*.bpe")
    whole = path.read_bytes()
    if damage in ("header", "tables", "ids"):  # with a checksum that is right
        body = bytearray(whole[32:])
        line = body.index(b"\n")
        header = json.loads(body[:line])
        if damage == "header":
            body[:line] = b"[" + b" " * (line - 1)
        elif damage == "tables":
            header["items"][0] += 1
            body = json.dumps(header).encode() + body[line:]
        else:
            at = line + 1 + -(line + 1) % 8 + 8 * header["items"][0]
            body[at : at + 4] = b"\xff" * 4
        import hashlib

        path.write_bytes(hashlib.sha256(body).digest() + body)
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-9], "flipped": whole[:-9] + b"\x01" + whole[-8:]}[damage])
    assert type(load_tokenizer(files)) is LibraryTokenizer
    assert path.read_bytes() == whole
    assert type(load_tokenizer(files)) is QuickTokenizer


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="folders of Windows have no modes")
def test_tables_that_others_can_write_to_are_not_read(notes: Path) -> None:
    files = json_files(byte_level_json())
    load_tokenizer(files)
    notes.chmod(notes.stat().st_mode | stat.S_IWOTH)
    assert type(load_tokenizer(files)) is LibraryTokenizer


def test_another_library_makes_tables_of_its_own(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = json_files(byte_level_json())
    load_tokenizer(files)
    monkeypatch.setattr(library_files, "library_build", lambda: "another")
    assert type(load_tokenizer(files)) is LibraryTokenizer
    assert type(load_tokenizer(files)) is QuickTokenizer


def test_the_library_is_imported_when_a_text_needs_it(notes: Path, tmp_path: Path) -> None:
    files = tmp_path / "model"
    files.mkdir()
    (files / "tokenizer.json").write_text(json.dumps(byte_level_json()))
    code = (
        "import sys; from edgellm.text import known_files, load_tokenizer; from edgellm.sidefiles import FolderFiles\n"
        "known_files.MIN_BYTES = 1\n"
        f"tokenizer = load_tokenizer(FolderFiles({str(files)!r}))\n"
        "tokenizer.decode(tokenizer.encode('Once upon a time <|im_end|>'))\n"
        "print('tokenizers' in sys.modules)\n"
        "tokenizer.encode('\\xc4pfel')\n"
        "print('tokenizers' in sys.modules)\n"
    )
    load_tokenizer(FolderFiles(files))
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "True"]


def published(name: str) -> dict[str, Any]:
    import tokenizers

    folder = shared(f"tokenizers/{name}")
    if (folder / "tokenizer.json").exists():
        return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return json.loads(tokenizers.Tokenizer(model).to_str()) | {"pre_tokenizer": KNOWN[name], "decoder": WORDS}


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "smollm2"])
def test_published_vocabularies(name: str, notes: Path, no_library) -> None:
    quick, library = both(json_files(published(name)))
    no_library()
    for text in ("c4", "code"):
        lines = shared(f"text/{text}.utf8").read_text(encoding="utf-8").splitlines(keepends=True)
        tried = [line[:MAX_CHARACTERS] for line in lines if line.isascii()][:200]
        assert len(tried) == 200
        for line in tried:
            ids = quick._quick_ids([line], lambda line=line: [line])
            assert ids == library.encode(line) or (ids is None and max(map(len, line.split())) > 64)

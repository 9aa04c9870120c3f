"""A tokenizer.json that passed is not gone through again; one that must not be used is refused every time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgellm.errors import EdgeLLMError, TokenizerError
from edgellm.text import known_files, library_files, load_tokenizer
from edgellm.text.known_files import Facts, note_of
from tests.text.conftest import byte_level_json, json_files, llama_json

TEXT = "Ein Test, <|im_end|> zwei  Tests."


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were gone through."""
    real, found = library_files._looked_through, []

    def look(table, library, file):
        found.append(file)
        return real(table, library, file)

    monkeypatch.setattr(library_files, "_looked_through", look)
    return found


@pytest.mark.parametrize("table", [byte_level_json, lambda: llama_json(legacy=True)], ids=["byte level", "llama"])
def test_the_second_time_gives_the_same_tokenizer(table, notes: Path, looked: list[str]) -> None:
    config = {"added_tokens_decoder": {"7000": {"content": "<|own|>"}}}
    files = json_files(table())
    first, second = load_tokenizer(files), load_tokenizer(files)
    assert len(looked) == 1
    assert len(list(notes.glob("*.json"))) == 1
    for name in ("vocab_size", "special_tokens", "prefix_ids", "token_strings", "kind"):
        assert getattr(first, name) == getattr(second, name)
    ids = first.encode(TEXT)
    assert second.encode(TEXT) == ids
    assert second.decode(ids) == first.decode(ids)
    with pytest.raises(TokenizerError, match="cannot have its id"):  # what lies beside it is looked at each time
        load_tokenizer(json_files(table(), tokenizer_config=config))
    with pytest.raises(TokenizerError, match="beyond the embedding rows"):
        load_tokenizer(files, vocab_size=first.vocab_size - 1)


def twice_the_same_id(table: dict) -> None:
    table["model"]["vocab"]["another"] = 5


def greedy_normalizer(table: dict) -> None:
    table["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 10_000}


@pytest.mark.parametrize("spoil", [twice_the_same_id, greedy_normalizer])
def test_what_must_not_be_used_is_refused_every_time(spoil, notes: Path) -> None:
    table = byte_level_json()
    spoil(table)
    for _ in range(2):
        with pytest.raises(TokenizerError):
            load_tokenizer(json_files(table))
    assert not notes.exists()


@pytest.mark.parametrize("note", ["", "{}", '{"size": "9", "may_panic": false, "decoder": null}', "[1]", "\0"])
def test_a_damaged_note_is_none(note: str, notes: Path, looked: list[str]) -> None:
    files = json_files(llama_json(legacy=True))
    load_tokenizer(files)
    (path,) = notes.iterdir()
    path.write_text(note)
    assert load_tokenizer(files).encode(TEXT) == load_tokenizer(files).encode(TEXT)
    assert len(looked) == 2
    assert json.loads(path.read_text())["may_panic"] is False


def test_other_bytes_and_other_libraries_are_others(notes: Path) -> None:
    facts = Facts(9, True, {"type": "ByteLevel"})
    known_files.remember(note_of(b"data", "1.0"), facts)
    assert known_files.recall(note_of(b"data", "1.0")) == facts
    assert known_files.recall(note_of(b"dato", "1.0")) is None
    assert known_files.recall(note_of(b"data", "1.1")) is None


def test_notes_are_few_and_need_not_be(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_files, "KEPT_FILES", 3)
    for number in range(5):
        known_files.remember(note_of(b"%d" % number, "1.0"), Facts(9, False, None))
    assert len(list(notes.iterdir())) == 3
    assert known_files.recall(note_of(b"4", "1.0")) is not None
    monkeypatch.setenv("EDGELLM_CACHE_DIR", str(notes / ("x" * 300)))
    known_files.remember(note_of(b"5", "1.0"), Facts(9, False, None))
    assert known_files.recall(note_of(b"5", "1.0")) is None


def test_small_files_leave_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_CACHE_DIR", str(tmp_path))
    load_tokenizer(json_files(byte_level_json()))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EdgeLLMError):
        load_tokenizer(json_files({"model": {}}))

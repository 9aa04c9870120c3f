"""Tokenizer files nobody vouches for: every one ends in a named error, none in a crash."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgellm.errors import ModelError, TokenizerError
from edgellm.sidefiles import MemoryFiles
from edgellm.text import load_tokenizer
from edgellm.text.boundary import library_errors

BASE = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<zz>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}


def added(token_id, content="<x>", special=True):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, "special": special, **flags}


def replacing(pattern, content):
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def precompiled(data):
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def load(table, **config):
    files = {"tokenizer.json": table if isinstance(table, bytes) else json.dumps(table).encode()}
    if config:
        files["tokenizer_config.json"] = json.dumps(config).encode()
    return load_tokenizer(MemoryFiles(files, "model"))


def test_the_base_of_these_cases_is_sound():
    assert load(BASE).encode("ab") == [2]
    assert load({**BASE, "added_tokens": [added(3)]}).encode("a<x>") == [0, 3]


HOSTILE = {
    "empty": b"",
    "not json": b"{",
    "list": b"[]",
    "null": {},
    "depth": b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "unknown model": {**BASE, "model": {"type": "Magic"}},
    "merge of an unknown piece": {**BASE, "model": {**BASE["model"], "merges": ["a z"]}},
    "merge of three": {**BASE, "model": {**BASE["model"], "merges": ["a b c"]}},
    "vocabulary empty": {**BASE, "model": {"type": "BPE", "vocab": {}, "merges": []}},
    "id twice": {**BASE, "model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}},
    "id too large": {**BASE, "model": {"type": "BPE", "vocab": {"a": 1 << 32}, "merges": []}},
    "id negative": {**BASE, "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
    "added id taken": {**BASE, "added_tokens": [added(1)]},
    "added id twice": {**BASE, "added_tokens": [added(3, "<x>"), added(3, "<y>")]},
    "added id far away": {**BASE, "added_tokens": [added(9)]},
    "added id too large": {**BASE, "added_tokens": [added(1 << 32)]},
    "added token without text": {**BASE, "added_tokens": [{"id": 3}]},
    "template names a missing token": {**BASE, "post_processor": TEMPLATE},
    "the same in a sequence": {**BASE, "post_processor": {"type": "Sequence", "processors": [TEMPLATE]}},
    "normalizer expands": {**BASE, "normalizer": replacing("a", "x" * 10_000_000)},
    "normalizers expand": {**BASE, "normalizer": {"type": "Sequence", "normalizers": [replacing("a", "aaaaaaaa")] * 9}},
    "prefix expands": {**BASE, "normalizer": {"type": "Prepend", "prepend": "x" * 1_000_000}},
    "charsmap expands": {**BASE, "normalizer": precompiled(b"\4\0\0\0" + b"\0" * 4 + b"x" * 100_000 + b"\0")},
    "decoder unknown": {
        **BASE,
        "decoder": {"type": "CTC", "pad_token": "a", "word_delimiter_token": "b", "cleanup": True},
    },
    "bad regex": {
        **BASE,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False},
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tokenizer_json(name):
    start = time.thread_time()
    with pytest.raises(ModelError) as caught:
        load(HOSTILE[name])
    assert time.thread_time() - start < 2
    assert str(caught.value).startswith("model:tokenizer.json")
    assert len(str(caught.value)) < 1500


CONFIGS = {
    "decoder list": {"added_tokens_decoder": [1]},
    "id no number": {"added_tokens_decoder": {"x": {"content": "<x>"}}},
    "id too large": {"added_tokens_decoder": {"99999999": {"content": "<x>"}}},
    "id far away": {"added_tokens_decoder": {"77": {"content": "<x>"}}},
    "id taken": {"added_tokens_decoder": {"1": {"content": "<x>"}}},
    "id twice": {"added_tokens_decoder": {"3": {"content": "<x>"}, "03": {"content": "<y>"}}},
    "entry text": {"added_tokens_decoder": {"3": "<x>"}},
    "content number": {"added_tokens_decoder": {"3": {"content": 3}}},
    "content long": {"added_tokens_decoder": {"3": {"content": "x" * 1000}}},
    "bos number": {"bos_token": 3},
    "bos list": {"bos_token": {"content": ["<s>"]}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_hostile_tokenizer_config(name):
    with pytest.raises(TokenizerError):
        load(BASE, **CONFIGS[name])


def test_added_tokens_of_the_config_complete_the_file():
    tokenizer = load(
        BASE, added_tokens_decoder={"3": {"content": "<x>", "special": True}}, bos_token="<x>", eos_token="<no>"
    )
    assert tokenizer.encode("a<x>b") == [0, 3, 1]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (3, None)


def test_a_panic_is_an_error(capfd):
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer = load({**BASE, "pre_tokenizer": split})
    with pytest.raises(TokenizerError, match=r"model:tokenizer\.json: the text cannot be encoded"):
        tokenizer.encode("a" * 40 + "b")
    assert capfd.readouterr().err == ""  # where the library had printed the panic itself


def test_other_exceptions_pass_the_border():
    with pytest.raises(KeyboardInterrupt), library_errors("file", "what"):
        raise KeyboardInterrupt
    with pytest.raises(TokenizerError, match=r"file: what \(no\)"), library_errors("file", "what"):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 100, b"\x0a", b"\x0a\x05\x0a\x03", b"x" * 1000, b"\x0a\xff\xff\xff\xff\xff\xff"]
)
def test_damaged_sentencepiece_model(data):
    with pytest.raises(TokenizerError, match=r"model:tokenizer\.model"):
        load_tokenizer(MemoryFiles({"tokenizer.model": data}, "model"))


def test_sentencepiece_model_that_expands(spm_model):
    charsmap = b"\4\0\0\0" + b"\0" * 4 + b"x" * 1000 + b"\0"
    size = len(charsmap)
    field = b"\x12" + bytes([size & 0x7F | 0x80, size >> 7]) + charsmap
    size = len(field)
    data = spm_model + b"\x1a" + bytes([size & 0x7F | 0x80, size >> 7]) + field
    with pytest.raises(TokenizerError, match="charsmap"):
        load_tokenizer(MemoryFiles({"tokenizer.model": data}, "model"))


MUTATE = """
import random, sys
from pathlib import Path
from edgellm.errors import EdgeLLMError
from edgellm.sidefiles import MemoryFiles
from edgellm.text import load_tokenizer

data, rng, loaded, refused = Path(sys.argv[1]).read_bytes(), random.Random(7), 0, 0
for number in range(150):
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    if number % 5 == 0:
        del changed[rng.randrange(len(changed)):]
    try:
        tokenizer = load_tokenizer(MemoryFiles({sys.argv[2]: bytes(changed)}, "model"))
        tokenizer.decode(tokenizer.encode("Hello <|user|> world"))
        loaded += 1
    except EdgeLLMError:
        refused += 1
print(loaded, refused)
"""


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_random_damage_never_crashes(name, spm_model, byte_level_table, tmp_path):
    path = tmp_path / name
    path.write_bytes(spm_model if name == "tokenizer.model" else json.dumps(byte_level_table).encode())
    root = str(Path(__file__).resolve().parents[2])
    result = subprocess.run(
        [sys.executable, "-c", MUTATE, str(path), name],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert sum(map(int, result.stdout.split())) == 150


def test_no_tokenizer_and_half_a_tokenizer():
    with pytest.raises(TokenizerError, match="no tokenizer found"):
        load_tokenizer(MemoryFiles({"config.json": b"{}"}, "model"))
    with pytest.raises(TokenizerError, match=r"merges\.txt: missing"):
        load_tokenizer(MemoryFiles({"vocab.json": b'{"a": 0}'}, "model"))
    for merges in (b"a", b"a b c", b"\xff"):
        with pytest.raises(TokenizerError, match=r"merges\.txt"):
            load_tokenizer(MemoryFiles({"vocab.json": b'{"a": 0}', "merges.txt": merges}, "model"))
    with pytest.raises(TokenizerError, match=r"vocab\.json"):
        load_tokenizer(MemoryFiles({"vocab.json": b'{"a": "0"}', "merges.txt": b""}, "model"))
    with pytest.raises(TokenizerError, match=r"vocab\.json"):
        load_tokenizer(MemoryFiles({"vocab.json": b'{"a": 0}', "merges.txt": b"a z"}, "model"))


@pytest.mark.parametrize("unit", [" ", "a", "\n", "👩‍👩‍👧", "\0", "<"])
def test_encoding_takes_linear_time(byte_level, llama, spm, unit):
    for tokenizer in (byte_level, llama, spm):
        seconds = []
        for size in (100_000, 400_000):
            text = unit * (size // len(unit.encode()))
            start = time.thread_time()
            tokenizer.encode(text)
            seconds.append(time.thread_time() - start)
        assert seconds[1] < 4 * 3 * max(seconds[0], 0.02)  # quadratic would be 16 times

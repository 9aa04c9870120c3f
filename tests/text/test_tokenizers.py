"""Every kind of tokenizer against the library that defines it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import TokenizerError, UsageError
from edgellm.sidefiles import MemoryFiles
from edgellm.text import Segment, load_tokenizer
from edgellm.text.boundary import MAX_TEXT_BYTES
from tests.text.corpus import SAMPLES, SENTENCES

PLAIN_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def library_of(table):
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(table))


def test_ids_are_those_of_the_library(byte_level, byte_level_table, llama, llama_table):
    for tokenizer, table in ((byte_level, byte_level_table), (llama, llama_table)):
        library = library_of(table)
        for text in [*SAMPLES, *SENTENCES[:5], "<s>a</s> b", "<|im_start|>user\nx<|im_end|>", "a<|end|>  b"]:
            assert tokenizer.encode(text) == library.encode(text).ids
            assert (
                tokenizer.encode(text, add_special_tokens=False) == library.encode(text, add_special_tokens=False).ids
            )
            ids = library.encode(text).ids
            assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=False)
            assert tokenizer.decode(ids, skip_special_tokens=True) == library.decode(ids, skip_special_tokens=True)


def test_sentencepiece_ids_are_its_own_after_bos(spm, spm_model):
    import sentencepiece

    own = sentencepiece.SentencePieceProcessor(model_proto=spm_model)
    for text in [*SAMPLES, *SENTENCES[:5], "a    b"]:
        assert spm.encode(text) == [own.bos_id(), *own.encode(text)]
        assert spm.decode(spm.encode(text), skip_special_tokens=True) == own.decode(own.encode(text))


@given(text=PLAIN_TEXT)
@settings(max_examples=100, deadline=None)
def test_round_trip(byte_level, llama, spm, text):
    import unicodedata

    assert byte_level.decode(byte_level.encode(text)) == unicodedata.normalize("NFC", text)
    # a text that spells an added token is that token where the library reads it, and special ones are left out below
    if "▁" not in text and not any(token in text for token in llama.special_tokens):
        assert llama.decode(llama.encode(text), skip_special_tokens=True) == text
        assert spm.decode(spm.encode(text), skip_special_tokens=True) == text


def test_names_and_ids(byte_level, llama, spm):
    assert byte_level.kind == "tokenizer.json"
    assert spm.kind == "sentencepiece"
    assert (byte_level.bos_token_id, byte_level.eos_token_id) == (None, byte_level.special_tokens["<|im_end|>"])
    assert byte_level.pad_token_id == byte_level.special_tokens["<|endoftext|>"]
    assert byte_level.token_strings == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert byte_level.special_tokens["<think>"] not in byte_level.special_ids
    assert (llama.bos_token_id, llama.eos_token_id, spm.bos_token_id, spm.eos_token_id) == (1, 2, 1, 2)
    assert spm.token_strings["bos_token"] == "<s>"
    assert llama.vocab_size == max(llama.special_tokens.values()) + 1


def test_ids_of_added_tokens_lead_there_and_back(tokenizer):
    for text, token_id in tokenizer.special_tokens.items():
        assert tokenizer.piece_bytes(token_id) == text.encode()
        assert tokenizer.encode(text, add_special_tokens=False) == [token_id]


def test_special_tokens_can_be_spelled_out(tokenizer):
    for text in tokenizer.special_tokens:
        ids = tokenizer.encode(f"a{text}b {text}", add_special_tokens=False, parse_special=False)
        assert not set(ids) & set(tokenizer.special_tokens.values())
        assert tokenizer.decode(ids) == f"a{text}b {text}"


def test_segments_decide_where_added_tokens_are_parsed(byte_level):
    end = byte_level.special_tokens["<|im_end|>"]
    ids = byte_level.encode_segments(
        [Segment("a<|im_"), Segment("end|>"), Segment("<|im_end|>", False), Segment("<|im_end|>")]
    )
    assert ids.count(end) == 1
    assert ids[-1] == end
    assert byte_level.decode(ids) == "a" + "<|im_end|>" * 3


@given(
    parts=st.lists(
        st.sampled_from(["a", " b", "  ", "\n", "<s>", "</s>", "[INST]", "<|end|>", "<|im_end|>", "<think>", "é"])
    )
)
@settings(max_examples=100, deadline=None)
def test_spelling_machinery_equals_the_library_where_nothing_is_spelled(byte_level, llama, mistral, spm, parts):
    text = "".join(parts)
    for tokenizer in (byte_level, llama, mistral, spm):
        split = tokenizer._matcher.split([Segment(text)])
        assert tokenizer._encode_parts(split) == tokenizer.encode(text, add_special_tokens=False)


def test_text_that_normalizes_into_an_added_token_stays_text(byte_level_table):
    table = json.loads(json.dumps(byte_level_table))
    table["normalizer"] = {"type": "NFKC"}
    for token in table["added_tokens"]:
        token["normalized"] = True
    tokenizer = load_tokenizer(MemoryFiles({"tokenizer.json": json.dumps(table).encode()}, "model"))
    full_width = "<|im_end|>".translate({ord(c): ord(c) + 0xFEE0 for c in "<|>"})
    end = tokenizer.special_tokens["<|im_end|>"]
    assert end in tokenizer.encode(full_width)
    assert end not in tokenizer.encode_segments([Segment(full_width)])
    assert end in tokenizer.encode_segments([Segment("x<|im_end|>")])


def test_lone_surrogates_count_as_the_replacement_character(tokenizer):
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")
    assert tokenizer.encode("\udc80", parse_special=False) == tokenizer.encode("\ufffd", parse_special=False)


def test_too_long_text_is_refused(tokenizer):
    with pytest.raises(UsageError, match="too long"):
        tokenizer.encode("é" * (MAX_TEXT_BYTES // 2 + 1))
    with pytest.raises(UsageError, match="string"):
        tokenizer.encode(b"bytes")


def test_ids_that_do_not_exist(spm_model):
    files = MemoryFiles({"tokenizer.model": spm_model}, "model")
    tokenizer = load_tokenizer(files, vocab_size=512)
    assert tokenizer.decode([511]) == ""
    for wrong in (512, -1, 1 << 40):
        with pytest.raises(UsageError, match="no such token id"):
            tokenizer.decode([wrong])
    with pytest.raises(TokenizerError, match="beyond the embedding rows"):
        load_tokenizer(files, vocab_size=419)


def test_vocab_and_merges_equal_the_tokenizer_json(byte_level_table, byte_level):
    model = byte_level_table["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    added = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in byte_level_table["added_tokens"]
    }
    config = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": added}
    files = {
        "vocab.json": json.dumps(model["vocab"]).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }
    tokenizer = load_tokenizer(MemoryFiles(files, "model"))
    assert tokenizer.kind == "vocab.json+merges.txt"
    for text in [*SAMPLES, *SENTENCES[:5], "<|im_start|>x<|im_end|>"]:
        assert tokenizer.encode(text) == byte_level.encode(text)
    files["tokenizer_config.json"] = json.dumps({**config, "tokenizer_class": "Qwen2TokenizerFast"}).encode()
    qwen = load_tokenizer(MemoryFiles(files, "model"))
    assert [len(qwen.encode(digits)) for digits in ("1", "10", "100")] == [1, 2, 3]
    files["tokenizer_config.json"] = json.dumps({"tokenizer_class": "BertTokenizer"}).encode()
    with pytest.raises(TokenizerError, match="tokenizer class"):
        load_tokenizer(MemoryFiles(files, "model"))


def test_sentencepiece_prefix_rules(spm_model):
    def loaded(**config):
        return load_tokenizer(
            MemoryFiles({"tokenizer.model": spm_model, "tokenizer_config.json": json.dumps(config).encode()}, "model")
        )

    word, bare = loaded().encode("star", add_special_tokens=False), loaded(add_prefix_space=False)
    assert loaded(legacy=True).encode("[INST]star")[-len(word) :] == word
    assert loaded(legacy=False).encode("[INST]star")[2:] == bare.encode("star")[1:]
    assert loaded(legacy=False).encode("star[INST]")[1:-1] == word
    assert loaded(add_bos_token=False).encode("star") == word
    assert loaded(add_eos_token=True).encode("star") == [1, *word, 2]
    added = {"420": {"content": "<|end|>", "rstrip": True, "lstrip": True, "special": True}}
    tokenizer = loaded(added_tokens_decoder=added)
    assert tokenizer.encode("star  <|end|>  star", add_special_tokens=False) == [*word, 420, *word]
    assert tokenizer.decode([*word, 420]) == "star<|end|>"


def test_training_fields_are_ignored(byte_level_table, byte_level):
    table = json.loads(json.dumps(byte_level_table))
    table["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}
    table["padding"] = {"strategy": {"Fixed": 64}, **padding}
    table["model"]["dropout"] = 0.9
    tokenizer = load_tokenizer(MemoryFiles({"tokenizer.json": json.dumps(table).encode()}, "model"))
    for text in SENTENCES[:5]:
        assert tokenizer.encode(text) == byte_level.encode(text)


def test_special_tokens_named_by_older_files(spm_model):
    files = {
        "tokenizer.model": spm_model,
        "added_tokens.json": b'{"<|im_end|>": 420}',
        "special_tokens_map.json": b'{"eos_token": {"content": "<|im_end|>"}}',
    }
    tokenizer = load_tokenizer(MemoryFiles(files, "model"))
    assert tokenizer.eos_token_id == 420
    assert 420 in tokenizer.special_ids

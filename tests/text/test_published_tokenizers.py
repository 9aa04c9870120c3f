"""Tokenizers as published, against ids that other programs computed; skipped without the shared data."""

from __future__ import annotations

import json

import pytest

from edgellm.sidefiles import FolderFiles, MemoryFiles
from edgellm.text import encode_chat, load_chat_template, load_tokenizer
from tests.text.corpus import SAMPLES, shared

SEPARATOR = "\n__ggml_vocab_test__\n"


def qwen2_files():
    vocab, config = shared("tokenizers/qwen2"), shared("tokenizers/qwen2.5")
    files = {name: (vocab / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    return MemoryFiles({**files, "tokenizer_config.json": (config / "tokenizer_config.json").read_bytes()}, "qwen2")


FILES = {
    "gpt-2": lambda: FolderFiles(shared("tokenizers/gpt2")),
    "phi-3": lambda: FolderFiles(shared("tokenizers/phi-3-mini")),
    "qwen2": qwen2_files,
}


@pytest.mark.parametrize("name", FILES)
def test_every_id_of_the_tokenizer_cases(name):
    tokenizer = load_tokenizer(FILES[name]())
    cases = shared(f"tokenizer-cases/ggml-vocab-{name}.gguf.inp").read_bytes().decode().split(SEPARATOR)
    lines = shared(f"tokenizer-cases/ggml-vocab-{name}.gguf.out").read_text().split("\n")
    assert len(cases) > 40
    for text, line in zip(cases, lines, strict=True):
        ids = [int(word) for word in line.split()]
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.encode(text, add_special_tokens=False, parse_special=False) == ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(("name", "model"), [("stories260K", "tok512.model"), ("babyllama-tok105", "tok105.model")])
def test_prompts_of_the_reference_outputs(name, model):
    data = shared(f"models/{name}/{model}").read_bytes()
    tokenizer = load_tokenizer(MemoryFiles({"tokenizer.model": data}, name))
    reference = json.loads(shared("models/reference_outputs.json").read_text())
    assert len(reference[name]["greedy"]) == 3
    for case in reference[name]["greedy"]:
        assert tokenizer.encode(case["prompt"]) == case["prompt_ids"]
        text = tokenizer.decode(tokenizer.encode(case["prompt"]) + case["greedy_ids"], skip_special_tokens=True)
        assert text.startswith(case["prompt"])
        again = tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True)
        assert again.rstrip() == text.rstrip()  # tok105 removes extra whitespace


@pytest.mark.parametrize("model", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def test_mistral_sentencepiece(model):
    import sentencepiece

    data = shared(f"tokenizers/mistral/{model}").read_bytes()
    tokenizer = load_tokenizer(MemoryFiles({"tokenizer.model": data}, model))
    own = sentencepiece.SentencePieceProcessor(model_proto=data)
    for text in SAMPLES:
        assert tokenizer.encode(text) == [1, *own.encode(text)]
        assert tokenizer.decode(own.encode(text)) == text.replace("▁", " ")
    for text, token_id in tokenizer.special_tokens.items():
        assert tokenizer.encode(text) == [1, token_id]
        assert token_id not in tokenizer.encode(text, parse_special=False)[1:]


def test_smollm2_truncation_is_ignored():
    tokenizer = load_tokenizer(FolderFiles(shared("tokenizers/smollm2")))
    assert len(tokenizer.encode("hello " * 500)) > 500


def test_tokenizers_of_the_quantized_models():
    folders = sorted(path.parent for path in shared("quantized").glob("*/tokenizer.json"))
    assert len(folders) >= 10
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        tokenizer = load_tokenizer(FolderFiles(folder), vocab_size=config["vocab_size"])
        for text in SAMPLES:
            ids = tokenizer.encode(text, add_special_tokens=False)
            decoded = tokenizer.decode(ids)
            spaced = text.replace("▁", " ")
            assert decoded in (text, spaced, spaced.removeprefix(" "))  # Metaspace takes a first space for its prefix
        template = load_chat_template(FolderFiles(folder), tokenizer)
        said = [{"role": "user", "content": f"hi {''.join(tokenizer.special_tokens)}"}]
        plain = [{"role": "user", "content": "hi"}]
        added = set(tokenizer.special_tokens.values())
        ids, expected = encode_chat(tokenizer, template, said), encode_chat(tokenizer, template, plain)
        assert [i for i in ids if i in added] == [i for i in expected if i in added]
        assert expected == tokenizer.encode(template.render(plain), add_special_tokens=False)

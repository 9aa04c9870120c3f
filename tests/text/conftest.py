"""Tiny tokenizers of every kind, trained on the spot."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from edgellm.sidefiles import MemoryFiles
from edgellm.text import known_files, load_tokenizer
from tests.text.corpus import SENTENCES

CHAT_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA_TOKENS = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level_json() -> dict[str, Any]:
    """A tokenizer.json as Qwen ships it: NFC, byte-level BPE, chat tokens and a plain added token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in CHAT_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    return json.loads(tokenizer.to_str())


def llama_json(*, legacy: bool) -> dict[str, Any]:
    """A tokenizer.json as Llama 2 (legacy: every piece gets the prefix) or newer Mistral (only the first) ship it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*LLAMA_TOKENS, *BYTES], show_progress=False)
    tokenizer.train_from_iterator((word for sentence in SENTENCES for word in sentence.split()), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken("[INST]", normalized=False), AddedToken("<|end|>", rstrip=True)])
    table = json.loads(tokenizer.to_str())
    table["added_tokens"] = [token for token in table["added_tokens"] if token["content"] not in BYTES]
    return table


def json_files(table: dict[str, Any], **others: Any) -> MemoryFiles:
    """Side files with a tokenizer.json and other JSON files named without their ending."""
    files = {"tokenizer": table, **others}
    return MemoryFiles({f"{name}.json": json.dumps(content).encode() for name, content in files.items()}, "model")


def train_sentencepiece(**options: Any) -> bytes:
    """A tiny sentencepiece model as Llama's: identity normalization, byte fallback."""
    import sentencepiece

    model = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 1.0,
        "minloglevel": 2,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES), model_writer=model, **settings)
    return model.getvalue()


QWEN_CONFIG = {
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "bos_token": None,
    "model_max_length": int(1e30),
}


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where notes of tokenizer files lie; every file is large enough for one."""
    monkeypatch.setenv("EDGELLM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(known_files, "MIN_BYTES", 1)
    return tmp_path / "tokenizers"


@pytest.fixture(scope="session")
def byte_level_table() -> dict[str, Any]:
    return byte_level_json()


@pytest.fixture(scope="session")
def llama_table() -> dict[str, Any]:
    return llama_json(legacy=True)


@pytest.fixture(scope="session")
def spm_model() -> bytes:
    return train_sentencepiece(user_defined_symbols=["<|user|>", "▁▁▁"], control_symbols=["[INST]"])


@pytest.fixture(scope="session")
def byte_level(byte_level_table):
    return load_tokenizer(json_files(byte_level_table, tokenizer_config=QWEN_CONFIG))


@pytest.fixture(scope="session")
def llama(llama_table):
    return load_tokenizer(
        json_files(llama_table, tokenizer_config={"bos_token": "<s>", "eos_token": {"content": "</s>"}})
    )


@pytest.fixture(scope="session")
def mistral():
    return load_tokenizer(
        json_files(llama_json(legacy=False), tokenizer_config={"bos_token": "<s>", "eos_token": "</s>"})
    )


@pytest.fixture(scope="session")
def spm(spm_model):
    return load_tokenizer(MemoryFiles({"tokenizer.model": spm_model}, "model"))


@pytest.fixture(params=["byte_level", "llama", "mistral", "spm"])
def tokenizer(request):
    return request.getfixturevalue(request.param)

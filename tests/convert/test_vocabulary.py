"""A vocabulary cut to a corpus: the corpus reads as before, any text comes back, the rows follow the ids."""

from __future__ import annotations

import json

import numpy as np
import pytest

import edgellm
from edgellm.convert.vocabulary import prune_vocabulary
from edgellm.convert.vocabulary_json import closed_tokens, cut_tokenizer, derivation
from edgellm.errors import TokenizerError
from edgellm.model import open_model
from edgellm.sidefiles import MemoryFiles
from edgellm.text import load_tokenizer
from tests.api.models import write_model
from tests.cli.conftest import write_model as write_sentencepiece_model
from tests.shared_data import SHARED_DATA, needs_shared_data

TEXT = "The cat sat on the mat, and the other cat sat there too.\n" * 3
OTHER = "A quick brown fox; 12 dogs! Ünïcödé 東京 🙂"
SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def write_bpe(folder, **model):
    """A byte-level BPE of some 400 tokens whose template puts BOS, its special tokens last."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    write_model(folder, vocab_rows=512, bos_token_id=300, eos_token_id=[301], **model)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(
        [TEXT + OTHER + "The cats and dogs there. " * 5 + "brown other quick foxes " * 9], trainer
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIALS])
    ids = {text: tokenizer.token_to_id(text) for text in SPECIALS}
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    tokenizer.save(str(folder / "tokenizer.json"))
    decoder = {str(ids[text]): {"content": text, "special": True} for text in SPECIALS}
    names = {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        values |= {"bos_token_id": ids["<s>"], "eos_token_id": [ids["</s>"], ids["<|im_end|>"]]}
        (folder / name).write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module", params=["tokenizer.json", "tokenizer.model"])
def cut(request, tmp_path_factory):
    """(source, cut model, report)."""
    folder = tmp_path_factory.mktemp("vocabulary")
    write = write_bpe if request.param == "tokenizer.json" else write_sentencepiece_model
    source, corpus = write(folder / "source"), folder / "corpus.txt"
    corpus.write_text(TEXT)
    with open_model(source) as opened:
        report = prune_vocabulary(opened, [corpus], folder / "out")
    return source, folder / "out", report


def test_the_corpus_reads_as_before_and_any_text_comes_back(cut):
    source, out, report = cut
    with (
        edgellm.load(source, backend="reference", context=64) as before,
        edgellm.load(out, backend="reference", context=64) as after,
    ):
        kept = report.kept_ids
        assert after.config.vocab_size == len(kept) == report.kept < report.of == before.config.vocab_size
        assert kept[after.tokenize(TEXT)].tolist() == before.tokenize(TEXT)
        for text in (OTHER, TEXT[::-1], "".join(map(chr, range(32, 400)))):
            assert after.detokenize(after.tokenize(text)) == before.detokenize(before.tokenize(text))
        ids = after.tokenize(TEXT)[:20]
        np.testing.assert_allclose(after.logits(ids), before.logits(kept[ids].tolist())[:, kept], rtol=1e-6, atol=1e-6)
        assert kept[after.tokenizer.bos_token_id] == before.tokenizer.bos_token_id
        assert {
            text: int(kept[i]) for text, i in after.tokenizer.special_tokens.items()
        } == before.tokenizer.special_tokens


def test_files_name_the_new_ids(cut):
    source, out, report = cut
    new = {int(old): at for at, old in enumerate(report.kept_ids)}
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, out))
    assert (after["vocab_size"], after["bos_token_id"]) == (report.kept, new[before["bos_token_id"]])
    assert report.nbytes_before - report.nbytes == 4 * 32 * (report.of - report.kept)
    with open_model(out) as opened:
        assert opened.weights.unused() == []
        assert opened.checkpoint.info("model.embed_tokens.weight").shape == (report.kept, 32)
    config = json.loads((out / "tokenizer_config.json").read_text())
    if "added_tokens_decoder" in config:
        tokens = json.loads((out / "tokenizer.json").read_text())["added_tokens"]
        assert {str(token["id"]): token["content"] for token in tokens} == {
            key: entry["content"] for key, entry in config["added_tokens_decoder"].items()
        }


def test_a_derivation_is_every_step_of_the_merges():
    ranks = {("a", "b"): 0, ("ab", "c"): 1, ("b", "c"): 2}
    assert derivation("abc", ranks) == {"a", "b", "c", "ab", "abc"}
    assert derivation("abd", ranks) == {"a", "b", "d", "ab"}


def test_what_cannot_be_cut_is_said(tmp_path):
    from tokenizers import Tokenizer, models

    source, corpus = write_bpe(tmp_path / "source"), tmp_path / "corpus.txt"
    corpus.write_text(TEXT)
    Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0)).save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text("{}")
    with open_model(source) as opened, pytest.raises(TokenizerError, match=r"cannot be cut.*Unigram"):
        prune_vocabulary(opened, [corpus], tmp_path / "out")
    values = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "post_processor": {"type": "Strange"}}
    with pytest.raises(TokenizerError, match="unknown post-processor"):
        cut_tokenizer(values, {0: 0}, "tokenizer.json")
    values["model"]["end_of_word_suffix"] = "</w>"
    with pytest.raises(TokenizerError, match="end_of_word_suffix"):
        closed_tokens(values, [0], "tokenizer.json")
    assert not (tmp_path / "out").exists()


def test_a_unigram_of_sentencepiece_is_refused(tmp_path):
    import sentencepiece

    source, corpus = write_sentencepiece_model(tmp_path / "source"), tmp_path / "corpus.txt"
    corpus.write_text("\n".join([TEXT, OTHER] * 20))
    options = {"vocab_size": 90, "model_type": "unigram", "hard_vocab_limit": False, "minloglevel": 5}
    prefix = str(source / "tokenizer")
    sentencepiece.SentencePieceTrainer.train(input=str(corpus), model_prefix=prefix, byte_fallback=False, **options)
    with open_model(source) as opened, pytest.raises(TokenizerError, match=r"cannot be cut.*Unigram"):
        prune_vocabulary(opened, [corpus], tmp_path / "out")


@needs_shared_data
@pytest.mark.parametrize("name", ["smollm2", "phi-3-mini"])
def test_published_tokenizers_cut_to_a_text_read_it_as_before(name):
    folder = SHARED_DATA / "tokenizers" / name
    text = (SHARED_DATA / "text" / "wiki.test.raw").read_text(encoding="utf-8")[:30000]
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    before = load_tokenizer(MemoryFiles({"tokenizer.json": (folder / "tokenizer.json").read_bytes()}, "before"))
    ids = before.encode(text)
    kept = sorted(closed_tokens(values, ids, "tokenizer.json"))
    cut = cut_tokenizer(values, {old: new for new, old in enumerate(kept)}, "tokenizer.json")
    after = load_tokenizer(MemoryFiles({"tokenizer.json": json.dumps(cut).encode()}, "after"))
    assert len(kept) < 0.25 * before.vocab_size
    assert [kept[i] for i in after.encode(text)] == ids
    assert after.decode(after.encode(OTHER)) == before.decode(before.encode(OTHER))

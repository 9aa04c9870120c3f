"""Windows in which every token counts once, and the figures that come of them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgellm
from edgellm.convert import documents
from edgellm.convert.evaluate import Sums, count_window, evaluate_windows, log_softmax, summarize
from edgellm.convert.windows import Window, windows
from edgellm.errors import InputError, NumericalError, UsageError
from tests.api.models import write_model
from tests.golden_models import story_openings
from tests.shared_data import SHARED_DATA, needs_shared_data

VOCAB = 11


def table(seed: int, step: int):
    """Logits that depend on the id and its place, given in steps of `step` rows."""
    logits = np.random.default_rng(seed).standard_normal((64, VOCAB, VOCAB)).astype(np.float32) * 2

    def model(tokens, wanted):
        for first in range(0, len(tokens), step):
            if min(first + step, len(tokens)) > wanted:
                yield first, np.stack([logits[at, tokens[at]] for at in range(first, min(first + step, len(tokens)))])

    return model, logits


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(2, 12), st.integers(1, 11), st.booleans())
def test_every_token_is_counted_once_with_the_tokens_before_it(count, window, stride, with_bos):
    ids, prefix = list(range(100, 100 + count)), [7] if with_bos else []
    if stride >= window:
        with pytest.raises(UsageError, match="stride"):
            list(windows(ids, prefix, window, stride))
        return
    parts = list(windows(ids, prefix, window, stride))
    counted = [token for part in parts for token in part.tokens[part.first :]]
    assert counted == (ids if with_bos else ids[1:])
    for number, part in enumerate(parts):
        body = part.tokens[len(prefix) :]
        assert len(part.tokens) <= window
        assert part.first >= 1
        assert part.tokens[: len(prefix)] == prefix
        assert body == list(range(body[0], body[0] + len(body)))
        assert number == 0 or len(part.tokens) - part.first <= stride


def test_figures_are_those_of_the_definition():
    ids = np.random.default_rng(0).integers(0, VOCAB, 40)
    (model, mine), (other, theirs) = table(1, 5), table(2, 7)
    sums = Sums()
    for part in windows(ids.tolist(), [], 10, 6):
        count_window(sums, part, model, other)
    found = summarize(sums, window=10, stride=6, nbytes=100, excluded=1)
    nll, kl, agreed = [], [], []
    for part in windows(ids.tolist(), [], 10, 6):
        for at in range(part.first, len(part.tokens)):
            before = part.tokens[at - 1]
            q, p = log_softmax(mine[at - 1, before]), log_softmax(theirs[at - 1, before])
            nll.append(-q[part.tokens[at]])
            kl.append(sum(np.exp(p) * (p - q)))
            agreed.append(p.argmax() == q.argmax())
    assert found.tokens == len(nll) == 39
    assert found.nll_per_token == pytest.approx(np.mean(nll), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(np.mean(nll)), rel=1e-6)
    assert found.bits_per_byte == pytest.approx(np.sum(nll) / math.log(2) / 100, rel=1e-6)
    against = found.against
    assert against.kl_mean == pytest.approx(np.mean(kl), rel=1e-5)
    assert against.kl_median == pytest.approx(np.median(kl), rel=1e-5)
    assert against.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-5)
    assert against.top1_agreement == np.mean(agreed)
    assert against.nll_difference == pytest.approx(found.nll_per_token - against.nll_per_token, abs=1e-6)


def test_a_model_against_itself_differs_in_nothing_however_it_steps():
    ids = np.random.default_rng(0).integers(0, VOCAB, 30).tolist()
    found = evaluate_windows(
        windows(ids, [3], 12, 5), table(1, 4)[0], table(1, 3)[0], window=12, stride=5, nbytes=30
    ).against
    assert (found.kl_max, found.top1_agreement, found.nll_difference) == (0.0, 1.0, 0.0)


def test_what_cannot_be_counted_is_said():
    bad = lambda tokens, wanted: iter([(0, np.full((len(tokens), VOCAB), np.nan, np.float32))])  # noqa: E731
    with pytest.raises(NumericalError, match="id 0"):
        count_window(Sums(), Window([1, 2], 1), bad)
    with pytest.raises(UsageError, match="at least two tokens"):
        summarize(Sums(), window=4, stride=3, nbytes=0, excluded=1)


def test_documents_of_a_text_come_in_pieces_that_end_with_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "PIECE_BYTES", 10)
    path = tmp_path / "text.txt"
    text = "Grüße\nzwei\n" + "lang" * 9 + "\nEnde"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    (document,) = [list(document.pieces) for document in documents.read_documents(path)]
    assert "".join(piece for piece, _ in document) == text
    assert document[0][0].endswith("\n")
    path.write_bytes(b"ab\n\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        [list(document.pieces) for document in documents.read_documents(path)]
    with pytest.raises(InputError, match="cannot be read"):
        list(documents.read_documents(tmp_path / "none"))


def test_documents_of_jsonl_are_texts_and_conversations(tmp_path):
    path = tmp_path / "some.jsonl"
    messages = [{"role": "user", "content": "Hi"}]
    path.write_text("\n".join(map(json.dumps, ["a", {"text": "b"}, {"messages": messages}])) + "\n\n")
    found = [
        (document.messages, [piece for piece, _ in document.pieces]) for document in documents.read_documents(path)
    ]
    assert found == [(None, ["a"]), (None, ["b"]), (tuple(messages), [])]
    path.write_text('"a"\n{"other": 1}\n')
    with pytest.raises(InputError, match="line 2"):
        list(documents.read_documents(path))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with (
        edgellm.load(write_model(folder / "a"), backend="reference", context=64) as a,
        edgellm.load(write_model(folder / "b", num_hidden_layers=1), backend="reference", context=64) as b,
    ):
        yield a, b


def test_evaluate_agrees_with_score(two, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over it.")
    seen = []
    found = edgellm.evaluate(two[0], path, against=two[1], progress=lambda *state: seen.append(state[:2]))
    score = two[0].score(path.read_text())
    assert found.nll_per_token == pytest.approx(score.nll_per_token, rel=1e-5)
    assert (found.tokens, found.excluded, found.bytes) == (len(score.tokens) - 1, 1, len(score.tokens) - 1)
    assert found.against.nll_per_token == pytest.approx(two[1].score(path.read_text()).nll_per_token, rel=1e-5)
    assert seen == [(34, 34)]
    assert json.loads(json.dumps(found.as_dict()))["against"]["kl_mean"] > 0


def test_evaluate_with_a_short_window_and_conversations(two, tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hello there"}]}) + '\n"0123456789"\n""\n')
    found = edgellm.evaluate(two[0], path, window=8, stride=4)
    ids = two[0].encode_chat([{"role": "user", "content": "Hello there"}])
    assert found.tokens == len(ids) - 1 + 9
    assert (found.window, found.stride, found.excluded) == (8, 4, 2)


def test_evaluate_refuses_another_tokenizer(two, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abc")
    folder = write_model(tmp_path / "other")
    config = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = config["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(config))
    with (
        edgellm.load(folder, backend="reference", context=64) as other,
        pytest.raises(UsageError, match="tokenizers of the two models differ"),
    ):
        edgellm.evaluate(two[0], path, against=other)


@needs_shared_data
def test_a_trained_model_has_the_likelihood_that_was_recorded(tmp_path):
    from tools.convert_llama2c import convert

    source = SHARED_DATA / "models" / "babyllama-tok105"
    recorded = json.loads((SHARED_DATA / "models" / "reference_outputs.json").read_text())
    expected = next(entry for key, entry in recorded.items() if key.startswith("babyllama"))["valid_nll_per_token"]
    folder = convert(source / "model5000.bin", source / "tok105.model", tmp_path / "m")
    with edgellm.load(folder, backend="reference") as llm:
        context = llm.config.max_position_embeddings
        stories = SHARED_DATA / "text" / "valid_decoded.txt"
        opened = story_openings(stories, lambda text: llm.tokenize(text, add_special_tokens=False), 1, context)
        parts = [part for ids in opened for part in windows(ids[1:], ids[:1], context, context - 1)]
        found = evaluate_windows(parts, llm.logits_in_steps, window=context, stride=context - 1)
    assert found.tokens == 38_250
    assert found.nll_per_token == pytest.approx(expected, abs=1e-6)

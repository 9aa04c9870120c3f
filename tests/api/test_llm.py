"""A loaded model: generating, chatting, scoring, and every argument that is refused."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

import edgellm
from edgellm.api import loading, memory, planning
from tests.api.models import write_model
from tests.golden_models import cases


@pytest.fixture(scope="module")
def llm(tiny):
    with edgellm.load(tiny, context=512, slots=2, cache_dtype="float32") as model:
        yield model


@pytest.mark.parametrize("case", cases("now"), ids=str)
def test_golden_models_give_the_greedy_ids_and_logits_of_transformers(case):
    reference = case.reference()
    with edgellm.load(case.folder, backend="reference") as llm:
        for at in (0, 1):
            ids = reference[f"input_ids_{at}"].tolist()
            logits = llm.logits(ids)
            assert logits.dtype == np.float32
            assert logits.shape == (len(ids), llm.config.vocab_size)
            expected = reference[f"logits_{at}"]
            assert np.abs(logits[reference[f"pos_{at}"]] - expected).max() < 1e-4 * np.abs(expected).max()
        ids = reference["input_ids_1"].tolist()
        result = llm.generate(ids, max_tokens=48, temperature=0, repetition_penalty=1.0, ignore_eos=True)
        assert result.tokens == reference["greedy_1"].tolist()


@pytest.mark.parametrize("case", cases("now"), ids=str)
def test_golden_models_on_the_default_backend_stay_near_transformers(case):
    reference = case.reference()
    with edgellm.load(case.folder) as llm:
        assert llm.info["backend"] == "cpu"
        ids = reference["input_ids_0"].tolist()
        difference = llm.logits(ids)[reference["pos_0"]] - reference["logits_0"]
        # random weights pass on what 8-bit activations and the 8-bit lm_head lose without attenuation: up to 0.031
        assert np.linalg.norm(difference) < 0.05 * np.linalg.norm(reference["logits_0"])
        found = llm.generate(ids, max_tokens=48, temperature=0, repetition_penalty=1.0, ignore_eos=True).tokens
    differs = np.flatnonzero(np.array(found) != reference["greedy_0"])
    assert differs.size == 0 or reference["greedy_margin_0"][differs[0]] < 2 * np.abs(difference).max()


def test_stream_and_generate_agree(llm):
    stream = llm.stream("Hello there", max_tokens=20, ignore_eos=True, logprobs=2)
    text = "".join(piece.text for piece in stream)
    result = llm.generate("Hello there", max_tokens=20, ignore_eos=True, logprobs=2)
    assert text == stream.result.text == result.text == str(result)
    assert result.tokens == stream.result.tokens
    assert len(result.logprobs) == 20
    assert result.logprobs[0].top[0][0] == result.tokens[0]
    assert result.usage.cached_tokens == len(llm.tokenize("Hello there")) - 1


def test_sampling_is_reproducible_with_a_seed(llm):
    def sample(seed):
        return llm.generate("x", max_tokens=24, temperature=1.0, seed=seed, ignore_eos=True).tokens

    assert sample(3) == sample(3) != sample(4)
    assert max(max(sample(seed)) for seed in range(20)) < 260


def test_threads_get_what_single_runs_get(llm):
    prompts = [f"prompt {at}" for at in range(6)]
    alone = [llm.generate(prompt, max_tokens=16, ignore_eos=True).text for prompt in prompts]
    together: dict[int, str] = {}

    def work(at):
        together[at] = llm.generate(prompts[at], max_tokens=16, ignore_eos=True).text

    threads = [threading.Thread(target=work, args=(at,)) for at in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [together[at] for at in range(6)] == alone


def test_score_and_logits_agree(llm):
    ids = llm.tokenize("a short text to be scored")
    score = llm.score(ids)
    logits = llm.logits(ids).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = logprobs[np.arange(len(ids) - 1), ids[1:]]
    assert score.tokens == ids
    assert score.logprobs.dtype == np.float32
    assert score.logprobs == pytest.approx(expected, abs=1e-4)
    assert score.nll == pytest.approx(-expected.sum(), rel=1e-5)
    assert score.perplexity == pytest.approx(np.exp(score.nll_per_token))
    assert llm.score("a short text to be scored").nll == score.nll
    with pytest.raises(edgellm.UsageError, match="two tokens"):
        llm.score([5])
    with pytest.raises(edgellm.ContextLengthError, match="600 tokens and the context holds 512"):
        llm.logits([1] * 600)


def test_a_conversation_outgrows_its_slot(tiny):
    # a random model answers bytes that are no text, longer rendered again than they were: the reference's are known
    with edgellm.load(tiny, context=512, backend="reference") as llm:
        chat = llm.chat("You are terse.")
        kept_keys = 0
        for turn in range(200):
            result = chat.send(f"message {turn}", max_tokens=12, ignore_eos=True)
            assert chat.messages[0] == {"role": "system", "content": "You are terse."}
            assert chat.messages[-1] == {"role": "assistant", "content": result.text}
            kept_keys += any("stayed in the cache" in note for note in result.notes)
            assert bool(result.dropped) == bool(result.notes)
        assert len(chat.dropped) + len(chat.messages) - 1 == 400
        assert kept_keys > 50
        assert chat.tokens_used <= chat.context == 512


def test_recompute_equals_a_fresh_conversation(llm):
    chat = llm.chat("S", evict="recompute")
    for turn in range(30):
        result = chat.send(f"message {turn}", max_tokens=20, temperature=0, ignore_eos=True)
    assert chat.dropped
    fresh = llm.chat(messages=chat.messages[:-2])
    assert fresh.send("message 29", max_tokens=20, temperature=0, ignore_eos=True).tokens == result.tokens


def test_a_saved_conversation_is_restored(llm, tiny, tmp_path):
    chat = llm.chat("S")
    for turn in range(20):
        chat.send(f"message {turn}", max_tokens=20, ignore_eos=True)
    assert chat.dropped
    chat.save(tmp_path / "chat")
    expected = chat.send("and?", max_tokens=10, ignore_eos=True)
    with llm.restore(tmp_path / "chat") as restored:
        answer = restored.send("and?", max_tokens=10, ignore_eos=True)
    assert answer.tokens == expected.tokens
    assert answer.usage.cached_tokens == expected.usage.cached_tokens > 100
    other = write_model(tmp_path / "other", hidden_size=64)
    with edgellm.load(other) as another, pytest.raises(edgellm.ModelError, match="another model"):
        another.restore(tmp_path / "chat")
    with edgellm.load(tiny) as again:
        assert again.restore(tmp_path / "chat").send("and?", max_tokens=3).finish_reason in ("length", "stop")


def test_text_of_a_message_never_becomes_a_special_token(llm):
    chat = llm.chat()
    chat.send("<|im_end|>", max_tokens=1)
    ids = llm.tokenize("<|im_end|>")
    assert ids == [258]
    assert llm.detokenize(ids) == "<|im_end|>"
    assert chat.tokens_used > len("<|im_end|>") + 3


def test_info_is_json_and_says_what_runs(llm, tiny):
    info = llm.info
    assert json.loads(json.dumps(info)) == info
    assert info["path"] == str(tiny)
    assert (info["context"], info["cache_dtype"], info["slots"]) == (512, "float32", 2)
    assert info["weight_bytes"] > 0
    assert info["cache_bytes"] > 0
    assert info["tokenizer"] == "tokenizer.json"
    assert "chat_template" in info["chat_template"]
    assert llm.context == 512


def test_defaults_come_from_generation_config_where_it_samples(tmp_path):
    generation = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    with edgellm.load(write_model(tmp_path / "a", generation=generation)) as llm:
        assert (llm.defaults.temperature, llm.defaults.top_p, llm.defaults.top_k) == (0.7, 0.8, 20)
        assert llm.defaults.repetition_penalty == 1.05
        assert llm.chat(temperature=0.2).send("x", max_tokens=2).text is not None
    with edgellm.load(write_model(tmp_path / "b", generation={"temperature": 0.7})) as llm:
        assert llm.defaults.temperature == 0


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"context": 0}, "context"),
        ({"context": 1025}, "context"),
        ({"context": True}, "context"),
        ({"context": "1"}, "context"),
        ({"cache_dtype": "float64"}, "cache_dtype"),
        ({"slots": 0}, "slots"),
        ({"threads": 0}, "threads"),
        ({"backend": 3}, "backend"),
        ({"device": 3}, "device"),
        ({"progress": 3}, "progress"),
    ],
)
def test_load_refuses_what_is_out_of_range(tiny, options, key):
    with pytest.raises(edgellm.UsageError) as caught:
        edgellm.load(tiny, **options)
    assert caught.value.key == key


def test_load_says_what_is_not_there(tiny, tmp_path):
    with pytest.raises(edgellm.BackendUnavailable, match="warp"):
        edgellm.load(tiny, backend="warp")
    with pytest.raises(edgellm.BackendUnavailable, match="cuda"):
        edgellm.load(tiny, backend="reference", device="cuda")
    with pytest.raises(edgellm.InputError):
        edgellm.load(tmp_path / "nothing")
    with pytest.raises(edgellm.UsageError, match="path"):
        edgellm.load(3)


def test_prompts_that_cannot_be_used(llm):
    for prompt in ("", [], [9999], [-1], b"bytes", 5, None, {"a": 1}):
        with pytest.raises(edgellm.UsageError):
            llm.generate(prompt)
    with pytest.raises(edgellm.UsageError, match="temperature"):
        llm.generate("x", temperature=float("nan"))
    with pytest.raises(edgellm.UsageError, match="evict"):
        llm.stream("x", evict="error")
    with pytest.raises(edgellm.ContextLengthError, match="513 tokens"):
        llm.generate([1] * 513)
    assert llm.generate([1] * 512, max_tokens=1).usage.prompt_tokens == 512


def test_without_a_template_or_a_tokenizer(tmp_path):
    folder = write_model(tmp_path / "base", template=None)
    with edgellm.load(folder) as llm:
        assert llm.template is None
        with pytest.raises(edgellm.TemplateError, match="no chat template"):
            llm.chat()
    (folder / "tokenizer.json").unlink()
    with edgellm.load(folder) as llm:
        assert len(llm.generate([1, 2], max_tokens=3, ignore_eos=True).tokens) == 3
        for use in (lambda: llm.generate("text"), lambda: llm.detokenize([1]), lambda: llm.tokenize("x")):
            with pytest.raises(edgellm.TokenizerError, match="no tokenizer"):
                use()


def test_use_after_close(tiny):
    llm = edgellm.load(tiny, context=64)
    chat = llm.chat()
    llm.close()
    llm.close()
    for use in (lambda: llm.generate("x"), lambda: llm.score("abc"), lambda: chat.send("x"), lambda: llm.logits([1])):
        with pytest.raises(edgellm.EngineClosed):
            use()


def test_progress_is_reported(tiny):
    calls: list[tuple[int, int]] = []
    edgellm.load(tiny, progress=lambda done, total: calls.append((done, total))).close()
    assert calls[-1][0] == calls[-1][1] > 0
    assert calls == sorted(calls)


def test_a_plan_that_does_not_fit_is_refused_before_anything_is_read(tiny, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 40 << 20)
    with pytest.raises(edgellm.OutOfMemoryError, match="available"):
        edgellm.load(tiny, slots=256)
    edgellm.load(tiny, force=True).close()
    assert not edgellm.estimate(tiny, slots=256).fits
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    assert edgellm.estimate(tiny).fits
    edgellm.load(tiny).close()


def test_a_failing_load_frees_the_runner(tiny, monkeypatch):
    closed = []

    def failing(*_):
        raise edgellm.ModelError("broken")

    monkeypatch.setattr(loading, "fingerprint", failing)
    real = planning.find

    def spying(name, device):
        backend = real(name, device)

        class Spy:
            name, prefill_chunk, plan_bytes = backend.name, backend.prefill_chunk, staticmethod(backend.plan_bytes)
            options, cache_dtypes = backend.options, backend.cache_dtypes

            @staticmethod
            def load(*args, **options):
                runner = backend.load(*args, **options)
                monkeypatch.setattr(type(runner), "close", lambda self: closed.append(self))
                return runner

        return Spy

    monkeypatch.setattr(planning, "find", spying)
    with pytest.raises(edgellm.ModelError, match="broken"):
        edgellm.load(tiny)
    assert len(closed) == 1

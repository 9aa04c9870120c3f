"""Text and log-probabilities of streams."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.engine.sequence import check_prompt
from edgellm.engine.stream import Stream
from edgellm.errors import UsageError
from tests.engine.helpers import engine_of, fresh_logits, request_of
from tests.fakes import ASSISTANT, END, EOS, FakeTokenizer

TEXTS = st.text(st.sampled_from("ab\n é😀"), max_size=24)
STOPS = st.lists(st.text(st.sampled_from("ab\n é😀"), min_size=1, max_size=4), max_size=3)


def answer(text, *, eos=frozenset({EOS, END}), **options):
    engine = engine_of(reply=lambda prompt: text)
    request = request_of([ASSISTANT], ignore_eos=False, **{"max_tokens": 200, **options})
    return Stream(engine, engine.submit(request))


@settings(max_examples=150, deadline=None)
@given(TEXTS, STOPS, st.integers(1, 60))
def test_the_pieces_joined_are_the_result_and_no_stop_string_shows(text, stops, max_tokens):
    stream = answer(text, stop=stops, max_tokens=max_tokens)
    pieces = list(stream)
    result = stream.result
    assert "".join(piece.text for piece in pieces) == result.text == str(result)
    assert not any(stop in result.text for stop in stops)
    ends = [text.find(stop) for stop in stops if stop in text]
    if max_tokens > len(text.encode()):
        assert result.finish_reason in ("stop", "length")
        assert text.startswith(result.text)
        assert len(result.text) == min(ends, default=len(text)) or len(result.text) <= max(ends, default=0)
    else:
        assert len(result.tokens) <= max_tokens
    assert [piece.token for piece in pieces if piece.token is not None] == result.tokens


def test_a_character_is_given_out_when_it_is_whole():
    pieces = list(answer("é!", eos=frozenset({END}), max_tokens=3))
    assert [piece.text for piece in pieces] == ["", "é", "!"]


def test_half_a_character_at_the_end_becomes_a_replacement():
    stream = answer("é", max_tokens=1)
    assert [(piece.text, piece.token) for piece in stream] == [("", 0xC3), ("\ufffd", None)]
    assert stream.result.tokens == [0xC3]


def test_an_end_of_sequence_is_no_part_of_the_tokens():
    engine = engine_of(reply=lambda prompt: "ok")
    request = request_of([ASSISTANT], ignore_eos=False, max_tokens=9)
    request = type(request)(**{**request.__dict__, "eos_token_ids": frozenset({END})})
    result = Stream(engine, engine.submit(request)).drain()
    assert (result.text, result.tokens, result.finish_reason) == ("ok", list(b"ok"), "stop")
    assert result.usage.completion_tokens == 2
    request = type(request)(**{**request.__dict__, "params": request.params.updated(ignore_eos=True)})
    result = Stream(engine, engine.submit(request)).drain()
    assert (result.text, result.tokens, result.finish_reason) == ("ok", [*b"ok", *[END] * 7], "length")


def test_logprobs_are_those_of_the_model_before_any_processing():
    engine = engine_of()
    prompt = list(b"some text")
    options = {"logprobs": 3, "max_tokens": 4, "logit_bias": {65: 100}}
    result = Stream(engine, engine.submit(request_of(prompt, **options))).drain()
    assert result.tokens == [65] * 4
    logits = fresh_logits(prompt).astype(float)
    total = math.log(sum(math.exp(value) for value in logits))
    first = result.logprobs[0]
    assert first.token == 65
    assert first.text == "A"
    assert first.logprob == pytest.approx(logits[65] - total)
    best = sorted(range(FakeTokenizer.vocab_size), key=lambda token: -logits[token])[:3]
    assert [token for token, _ in first.top] == best
    assert first.top[0][1] == pytest.approx(logits[best[0]] - total)
    assert Stream(engine, engine.submit(request_of(prompt))).drain().logprobs is None


def test_timings_and_usage_add_up():
    stream = answer("hello")
    result = stream.drain()
    timings = result.timings
    assert 0 <= timings.prefill_s <= timings.ttft_s <= timings.total_s
    assert timings.decode_s <= timings.total_s
    assert result.usage.prompt_tokens == 1


@pytest.mark.parametrize("tokens", [[], [-1], [272], [3, 10**12]])
def test_prompts_are_checked(tokens):
    with pytest.raises(UsageError, match="token"):
        check_prompt(tokens, 272)
    assert check_prompt([0, 271], 272) == [0, 271]

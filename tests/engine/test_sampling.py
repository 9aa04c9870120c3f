"""Sampling: what is refused, and what each step of the processing does."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.backends.interface import LogitsUse
from edgellm.engine.sampler import Sampler, log_softmax, top_logprobs
from edgellm.engine.sampling import SamplingOptions, SamplingParams
from edgellm.errors import NumericalError, UsageError


def logits_of(*values):
    return np.array(values, np.float32)


def pick(logits, prompt=(), vocab_size=None, **options):
    return Sampler(SamplingParams(**options), vocab_size or logits.size, prompt).pick(logits)


def drawn(logits, count=300, **options):
    """Which tokens are drawn how often."""
    sampler = Sampler(SamplingParams(temperature=options.pop("temperature", 1.0), seed=1, **options), logits.size, ())
    return Counter(sampler.pick(logits) for _ in range(count))


REFUSED = [
    ("max_tokens", [0, -1, 1.5, True, "5", 10**12]),
    ("temperature", [-1, math.nan, math.inf, 1e9, "1", True, None]),
    ("top_k", [-5, 1.5, True, "1", None]),
    ("top_p", [0, 2, -0.1, math.nan, "1"]),
    ("min_p", [-0.1, 1.1, math.nan]),
    ("repetition_penalty", [0, -1, math.nan, 101]),
    ("presence_penalty", [2.1, -2.1, math.nan]),
    ("frequency_penalty", [2.1, -2.1, math.inf]),
    ("logit_bias", [5, {-1: 0}, {"a": 0}, {1: 101}, {1: math.inf}, {1.5: 0}]),
    ("seed", [-1, 2**64, 0.5, True]),
    ("stop", [5, [""], "", [None], [1], b"x"]),
    ("logprobs", [-1, 21, True, 0.5]),
    ("ignore_eos", [1, "yes", None]),
]


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in REFUSED for value in values])
def test_values_outside_their_range_are_refused_by_name(key, value):
    with pytest.raises(UsageError) as caught:
        SamplingParams(**{key: value})
    assert caught.value.key.startswith(key)


def test_unknown_options_are_refused_and_none_keeps_the_default():
    with pytest.raises(UsageError, match="top_q"):
        SamplingParams().updated(top_q=1)
    params = SamplingParams(temperature=0.5, seed=3).updated(temperature=None, top_k=np.int64(4), stop="a")
    assert (params.temperature, params.seed, params.top_k, params.stop) == (0.5, 3, 4, ("a",))


def test_the_options_a_caller_may_give_are_those_of_the_params():
    assert set(SamplingOptions.__annotations__) == {item.name for item in fields(SamplingParams)}


@pytest.mark.parametrize(
    ("options", "use"),
    [
        ({}, LogitsUse.LARGEST),
        ({"temperature": 0.7, "top_k": 100}, LogitsUse.LARGEST),
        ({"temperature": 0.7, "min_p": 0.01}, LogitsUse.LARGEST),
        ({"temperature": 0.7, "repetition_penalty": 1.1, "top_k": 1}, LogitsUse.LARGEST),
        ({"temperature": 0.7}, LogitsUse.DRAWN),
        ({"temperature": 0.7, "top_k": 101, "min_p": 0.009}, LogitsUse.DRAWN),
        ({"temperature": 0.7, "top_p": 0.5}, LogitsUse.DRAWN),
        ({"logprobs": 0}, LogitsUse.ALL),
        ({"logit_bias": {3: 5.0}}, LogitsUse.ALL),
        ({"repetition_penalty": 0.9}, LogitsUse.ALL),
        ({"presence_penalty": -0.1}, LogitsUse.ALL),
        ({"frequency_penalty": -0.1, "presence_penalty": 1}, LogitsUse.ALL),
        ({"frequency_penalty": 0.1, "presence_penalty": 1}, LogitsUse.LARGEST),
    ],
)
def test_what_logits_are_for(options, use):
    assert SamplingParams(**options).logits_use == use


def test_ids_that_are_not_there_are_refused():
    with pytest.raises(UsageError, match="logit_bias"):
        pick(logits_of(1, 2, 3), logit_bias={3: 1})


def test_greedy_is_the_first_largest():
    assert pick(logits_of(1, 3, 3, 2)) == 1
    assert pick(logits_of(-0.0, 0.0)) == 0
    assert pick(logits_of(*[1e30] * 3)) == 0
    assert pick(logits_of(1, 2, 9), vocab_size=2) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_logit_that_is_not_finite_is_an_error(bad, temperature):
    with pytest.raises(NumericalError, match="token 1"):
        pick(logits_of(0, bad, 1), temperature=temperature)


EXTREMES = st.sampled_from([-1e30, -1e4, -1.0, -0.0, 0.0, 1e-38, 1.0, 1e4, 1e30])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(EXTREMES, min_size=1, max_size=8),
    st.sampled_from([0.0, 1e-8, 0.7, 2.0, 100.0]),
    st.sampled_from([0, 1, 3, 10**6]),
    st.sampled_from([1e-9, 0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([1e-3, 1.0, 100.0]),
    st.sampled_from([-2.0, 0.0, 2.0]),
    st.sampled_from([{}, {0: -100.0}, {0: 100.0}]),
)
def test_one_token_is_always_left(values, temperature, top_k, top_p, min_p, repetition, penalty, bias):
    sampler = Sampler(
        SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition,
            presence_penalty=penalty,
            frequency_penalty=penalty,
            logit_bias=bias,
            seed=0,
        ),
        len(values),
        [0],
    )
    with np.errstate(all="raise", under="ignore"):
        picked = [sampler.pick(logits_of(*values)) for _ in range(4)]
    assert all(0 <= token < len(values) for token in picked)


def test_the_limits_keep_what_they_say():
    logits = np.log(logits_of(0.4, 0.3, 0.2, 0.1))
    assert set(drawn(logits)) == {0, 1, 2, 3}
    assert set(drawn(logits, top_k=2)) == {0, 1}
    assert set(drawn(logits, top_p=0.65)) == {0, 1}
    assert set(drawn(logits, top_p=0.35)) == {0}
    assert set(drawn(logits, min_p=0.6)) == {0, 1}
    assert set(drawn(logits, min_p=0.4)) == {0, 1, 2}
    assert set(drawn(logits, top_k=3, top_p=0.7)) == {0, 1}
    assert set(drawn(logits, temperature=1e-8)) == {0}
    assert set(drawn(logits_of(1, 1, 1, 1), top_k=1)) == {0}


def test_a_wide_nucleus_is_found_too():
    logits = np.zeros(5000, np.float32)
    assert len(drawn(logits, count=4000, top_p=0.9)) > 1024
    assert max(drawn(logits, count=4000, top_p=0.9)) < 4501


def test_draws_follow_the_probabilities_and_the_seed():
    logits = np.log(logits_of(0.5, 0.3, 0.2))
    found = drawn(logits, count=4000)
    assert [found[at] / 4000 for at in range(3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    assert drawn(logits) == drawn(logits)
    flat = np.zeros(1000, np.float32)
    assert len({pick(flat, temperature=1.0) for _ in range(20)}) > 5


def test_penalties():
    logits = logits_of(2, 1.5, -1, -1.2)
    assert pick(logits, prompt=[0], repetition_penalty=1.5) == 1
    assert pick(logits_of(-1, -1.2), prompt=[0], repetition_penalty=1.5) == 1
    sampler = Sampler(SamplingParams(presence_penalty=0.6), 4, [0])
    assert [sampler.pick(logits) for _ in range(3)] == [0, 1, 0]
    sampler = Sampler(SamplingParams(frequency_penalty=0.3), 4, ())
    assert [sampler.pick(logits) for _ in range(4)] == [0, 0, 1, 0]
    assert pick(logits, logit_bias={3: 10}) == 3


def test_log_softmax_is_stable():
    found = log_softmax(logits_of(1e30, 0, -1e30))
    assert found[0] == 0
    assert np.isfinite(log_softmax(logits_of(3e38, -3e38))[0])
    assert log_softmax(logits_of(1, 1)) == pytest.approx(np.log([0.5, 0.5]))
    assert top_logprobs(np.array([0.1, 0.3, 0.3]), 2) == [(1, 0.3), (2, 0.3)]
    assert top_logprobs(np.array([0.1]), 0) == []

"""Greedy generation over the fake backend against a plain loop that keeps no cache."""

from __future__ import annotations

import pytest

from edgellm.engine.stream import Stream
from tests.engine.helpers import engine_of, greedy_ids, request_of


def run(engine, request):
    return Stream(engine, engine.submit(request)).drain()


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_tokens_equal_those_of_a_plain_loop_whatever_the_chunk(chunk):
    engine = engine_of(chunk=chunk)
    prompt = list(b"Once upon a time")
    result = run(engine, request_of(prompt, max_tokens=12))
    assert result.tokens == greedy_ids(prompt, 12)
    assert result.finish_reason == "length"
    assert result.usage.prompt_tokens == len(prompt)
    assert result.usage.completion_tokens == 12

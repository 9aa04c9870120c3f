"""Long answers through a small ring: memory does not grow, whatever is evicted; many requests leave nothing behind."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import edgellm
from tests.api.resources import Held, anonymous_bytes, held

CONTEXT = 256
#: What an answer keeps of each token: its id, its text, its place in two lists.
BYTES_A_TOKEN = 48
SLACK_BYTES = 1 << 20
#: A step that lasts, on a machine at work, hires one thread for the caller's part, which stays.
STAND_IN = 1

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the process's own memory from /proc")


def soak(folder: Path, cache_dtype: str, tokens: int) -> list[int]:
    """Bytes after each tenth of an answer of `tokens` tokens."""
    with edgellm.load(folder, backend="cpu", context=CONTEXT, cache_dtype=cache_dtype, threads=1) as llm:
        llm.generate("warm", max_tokens=2 * CONTEXT, ignore_eos=True)
        count, samples = 0, []
        with llm.stream("Once upon", max_tokens=tokens, ignore_eos=True, temperature=1.0, seed=5) as stream:
            for piece in stream:
                count += piece.token is not None
                if count >= (len(samples) + 1) * tokens // 10:
                    samples.append(anonymous_bytes())
            assert len(stream.result.tokens) == tokens
        logits = llm.logits([1, 2, 3])
        assert np.isfinite(logits).all()
    return samples


def growth(samples: list[int]) -> int:
    """From the first tenth, when everything has been allocated, to the end."""
    return samples[-1] - samples[0]


@pytest.mark.parametrize("cache_dtype", ["float16", "int8"])
def test_three_thousand_tokens_through_a_ring_of_256(tiny: Path, cache_dtype: str) -> None:
    samples = soak(tiny, cache_dtype, 3000)
    assert len(samples) == 10
    assert growth(samples) <= 3000 * BYTES_A_TOKEN + SLACK_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("cache_dtype", ["float16", "int8"])
def test_a_hundred_thousand_tokens_through_a_ring_of_256(tiny: Path, cache_dtype: str) -> None:
    samples = soak(tiny, cache_dtype, 100_000)
    print(cache_dtype, [sample >> 10 for sample in samples], "KiB")
    assert growth(samples) <= 100_000 * BYTES_A_TOKEN + SLACK_BYTES


def requests(folder: Path, count: int) -> Held:
    """What `count` requests, some cancelled, some dropped, leave behind."""
    with edgellm.load(folder, backend="cpu", context=64, slots=2, threads=2) as llm:

        def some(first: int, last: int) -> None:
            for number in range(first, last):
                prompt = f"request {number % 17}"
                if number % 3 == 0:
                    next(llm.stream(prompt, max_tokens=8, ignore_eos=True))
                elif number % 3 == 1:
                    cancel = threading.Event()
                    cancel.set()
                    assert llm.generate(prompt, max_tokens=8, cancel=cancel).finish_reason == "cancelled"
                else:
                    llm.generate(prompt, max_tokens=4, ignore_eos=True)

        some(0, 60)
        before = held()
        some(60, 60 + count)
        return held() - before


def test_requests_leave_nothing_behind(tiny: Path) -> None:
    left = requests(tiny, 120)
    assert left.memory <= SLACK_BYTES
    assert left.files == 0
    assert left.threads <= STAND_IN


@pytest.mark.slow
def test_six_thousand_requests_leave_nothing_behind(tiny: Path) -> None:
    left = requests(tiny, 6000)
    print(left)
    assert left.memory <= SLACK_BYTES * 4  # 0.7 KiB a request; peers leak 3 to 12 MiB
    assert left.files == 0
    assert left.threads <= STAND_IN

"""The token with the largest logit, found part by part."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.cpu import runner as runner_module
from edgellm.backends.cpu.best import op_best, op_token
from edgellm.backends.cpu.choosing import PARTS, part_size
from edgellm.backends.cpu.optable import Kind
from edgellm.backends.interface import Batch, Choice
from edgellm.backends.slots import SlotState
from tests.backends.cpu.kernels import WITHOUT_JIT
from tests.backends.cpu.test_model import load_cpu
from tests.backends.running import geometry
from tests.golden_models import GOLDEN_FOLDER


def chosen(logits: np.ndarray, limit: int, nth: int = 1) -> list[int]:
    rows, vocab = logits.shape
    act, flat, size = np.full(5 + rows * (PARTS + 1), 7.0, np.float32), logits.reshape(-1), part_size(vocab)
    for ith in reversed(range(nth)):
        op_best(act, 5, flat, vocab, size, limit, rows, ith, nth)
    for ith in reversed(range(nth)):
        op_token(act, 5, 5 + rows * PARTS, flat, vocab, size, limit, rows, ith, nth)
    assert (act[:5] == 7.0).all()
    return act[5 + rows * PARTS :].astype(int).tolist()


@pytest.mark.parametrize("vocab", [1, 63, 64, 65, 1000, 2049])
@pytest.mark.parametrize("nth", [1, 2, 3, 7])
def test_the_largest_below_the_limit(vocab: int, nth: int) -> None:
    logits = np.random.default_rng(vocab).standard_normal((3, vocab)).astype(np.float32)
    for limit in sorted({1, (vocab + 1) // 2, vocab}):
        assert chosen(logits, limit, nth) == logits[:, :limit].argmax(axis=1).tolist()


def test_the_first_of_equal_ones() -> None:
    logits = np.full((1, 300), -5.0, np.float32)
    assert chosen(logits, 300) == [0]
    logits[0, [71, 72, 290]] = 3.0
    assert chosen(logits, 300) == [71]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 150, 299])
def test_a_logit_that_is_not_finite_is_seen_beyond_the_limit_too(bad: float, at: int) -> None:
    logits = np.random.default_rng(0).standard_normal((2, 300)).astype(np.float32)
    logits[1, at] = bad
    assert chosen(logits, 280) == [int(logits[0, :280].argmax()), -1]


def test_a_runner_chooses_where_it_is_told_to_and_gives_logits_elsewhere() -> None:
    runner = load_cpu(GOLDEN_FOLDER / "tinyllama")
    vocab = runner.program.config.vocab_size
    parts = [(SlotState(0), [3, 4, 5], "last"), (SlotState(1), [7], "last"), (SlotState(2), [9], "last")]
    cache = runner.new_cache(geometry(runner, 16, 8), 3)
    logits = runner.run(cache, Batch.of(parts))
    greedy = Choice(vocab - 1)
    every = runner.choose(cache, Batch.of(parts, choices=(greedy,) * 3))
    assert every.tokens.tolist() == logits[:, : vocab - 1].argmax(axis=1).tolist()
    assert len(every.logits) == 0
    some = runner.choose(cache, Batch.of(parts, choices=(greedy, None, greedy)))
    assert some.tokens.tolist() == [every.tokens[0], -1, every.tokens[2]]
    np.testing.assert_array_equal(some.logits, logits[1:2])
    runner.close()


@pytest.mark.parametrize("name", ["tinyllama", "qwen2-mixed-window"])
def test_tokens_ahead_are_those_of_steps_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_AHEAD_SECONDS", 1e9)
    wanted = 23 if WITHOUT_JIT else 150
    runner = load_cpu(GOLDEN_FOLDER / name)
    vocab = runner.program.config.vocab_size
    shape = geometry(runner, 512, 8)
    caches = [runner.new_cache(shape, 1) for _ in range(2)]
    ids, greedy = [3, 4, 5], (Choice(vocab),)
    state, one_by_one = SlotState(0), []
    for _ in range(wanted):
        batch = Batch.of([(state, ids if state.length == 0 else one_by_one[-1:], "last")], choices=greedy)
        one_by_one.append(int(runner.choose(caches[0], batch).tokens[0]))
        state = state.extended(len(batch.token_ids))
    state, found, most = SlotState(0), [], 0
    while len(found) < wanted:
        ahead = len(found) % 12
        batch = Batch.of([(state, ids if state.length == 0 else found[-1:], "last")], choices=greedy, ahead=ahead)
        tokens = runner.choose(caches[1], batch).tokens.tolist()
        assert 1 <= len(tokens) <= 1 + ahead
        most = max(most, len(tokens))
        found += tokens
        state = state.extended(len(batch.token_ids) + len(tokens) - 1)
    assert found[:wanted] == one_by_one
    assert most == (12 if name == "tinyllama" else 1)  # where windows differ, Python plans every step
    runner.close()


def test_a_token_that_cannot_be_chosen_ends_what_is_done_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_AHEAD_SECONDS", 1e9)
    runner = load_cpu(GOLDEN_FOLDER / "tinyllama")
    vocab = runner.program.config.vocab_size
    cache, state = runner.new_cache(geometry(runner, 64, 8), 1), SlotState(0)
    for _ in range(2):
        runner.choose(cache, Batch.of([(state, [3], "last")], choices=(Choice(vocab),)))
        state = state.extended(1)
    norm = max(runner._lowered.table["weight"][runner._lowered.table["kind"] == Kind.RMS_NORM])
    runner._model[1][norm : norm + 4].view(np.float32)[0] = np.nan
    chosen = runner.choose(cache, Batch.of([(state, [3], "last")], choices=(Choice(vocab),), ahead=5))
    assert chosen.tokens.tolist() == [-1]
    runner.close()

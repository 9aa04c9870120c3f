"""Tokens that the runner chooses: when it is asked to, and that nothing but the draw changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.backends.interface import Batch, Choice, Chosen
from edgellm.engine.engine import Engine
from edgellm.engine.stream import Stream
from edgellm.errors import NumericalError
from tests.engine.helpers import engine_of, geometry_of, greedy_ids, request_of
from tests.fakes import FakeRunner, FakeTokenizer

PROMPTS = [list(f"prompt {i}".encode()) for i in range(5)]


def twin(logits: np.ndarray, choice: Choice) -> int:
    """The token of a row: a draw is the sequence's seed and number, nothing else."""
    logits = logits[: choice.vocab_size].astype(np.float64)
    if choice.temperature == 0:
        return int(logits.argmax())
    noise = np.random.default_rng((choice.seed, choice.draw)).gumbel(size=logits.size)
    return int((logits / choice.temperature + noise).argmax())


class ChoosingRunner(FakeRunner):
    """The fake, which chooses tokens too. `rows` has how many rows of every step it chose for, and gave logits of."""

    draws = True

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.rows: list[tuple[int, int]] = []

    def choose(self, cache, batch: Batch, stopped=None) -> Chosen:
        logits = self.run(cache, replace(batch, choices=()), None, stopped)
        tokens = np.full(len(logits), -1, np.int64)
        for row, choice in enumerate(batch.choices):
            if choice is not None and np.isfinite(logits[row]).all():
                tokens[row] = twin(logits[row], choice)
        free = [row for row, choice in enumerate(batch.choices) if choice is None]
        self.rows.append((len(logits) - len(free), len(free)))
        return Chosen(tokens, logits[free])


class AheadRunner(ChoosingRunner):
    """Takes up to `most` further steps in a call, where it may. `ahead` has how many it was allowed."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.ahead: list[int] = []

    def choose(self, cache, batch: Batch, stopped=None) -> Chosen:
        chosen = super().choose(cache, batch, stopped)
        tokens, state = chosen.tokens.tolist(), batch.states[0].extended(len(batch.token_ids))
        self.ahead.append(batch.ahead)
        for _ in range(min(batch.ahead, self.most)):
            following = Batch.of([(state, tokens[-1:], "last")], choices=batch.choices)
            tokens += super().choose(cache, following, stopped).tokens.tolist()
            state = state.extended(1)
        return Chosen(np.array(tokens), chosen.logits)


def choosing_engine(slots: int = 1, chunk: int = 16, ahead: int | None = None, context: int = 256) -> Engine:
    runner = ChoosingRunner() if ahead is None else AheadRunner(ahead)
    return Engine(runner, runner.new_cache(geometry_of(context, chunk), slots), slots)


def tokens_of(engine: Engine, prompts, **options) -> list[list[int]]:
    streams = [Stream(engine, engine.submit(request_of(prompt, **options))) for prompt in prompts]
    return [stream.drain().tokens for stream in streams]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 12))
def test_greedy_tokens_are_those_of_the_logits(slots, chunk):
    engine = choosing_engine(slots, chunk)
    assert tokens_of(engine, PROMPTS) == [greedy_ids(prompt, 8) for prompt in PROMPTS]
    assert all(free == 0 for _, free in engine.runner.rows)
    assert sum(chosen for chosen, _ in engine.runner.rows) == 8 * len(PROMPTS)


def test_draws_do_not_depend_on_what_else_runs():
    options = {"temperature": 0.9, "top_k": 40, "seed": 11, "max_tokens": 12}
    alone = [tokens_of(choosing_engine(), [prompt], **options)[0] for prompt in PROMPTS]
    assert tokens_of(choosing_engine(slots=3, chunk=4), PROMPTS, **options) == alone
    assert tokens_of(choosing_engine(), PROMPTS[:1], **{**options, "seed": 12})[0] != alone[0]
    without_seed = [tokens_of(choosing_engine(), PROMPTS[:1], temperature=2.0, max_tokens=12)[0] for _ in range(2)]
    assert without_seed[0] != without_seed[1]


@pytest.mark.parametrize(
    "options",
    [
        {"logprobs": 2},
        {"logit_bias": {5: 3}},
        {"repetition_penalty": 1.2},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"temperature": 0.8, "min_p": 0.1},
        {"temperature": 0.001},
    ],
    ids=lambda options: next(reversed(options)),
)
def test_what_a_choice_cannot_say_is_drawn_from_the_logits(options):
    options = {"seed": 7, "max_tokens": 10, **options}
    engine = choosing_engine()
    assert tokens_of(engine, PROMPTS[:1], **options) == tokens_of(engine_of(), PROMPTS[:1], **options)
    assert engine.runner.rows == []


def test_both_kinds_share_steps():
    engine = choosing_engine(slots=2)
    plain = Stream(engine, engine.submit(request_of(PROMPTS[0], max_tokens=6)))
    scored = Stream(engine, engine.submit(request_of(PROMPTS[1], max_tokens=6, logprobs=1)))
    next(plain)
    assert scored.drain().tokens == greedy_ids(PROMPTS[1], 6)
    assert len(scored.result.logprobs) == 6
    assert plain.drain().tokens == greedy_ids(PROMPTS[0], 6)
    assert (1, 1) in engine.runner.rows


def test_logits_that_are_not_finite_end_their_sequence_alone():
    engine = choosing_engine(slots=2)
    good, bad = (Stream(engine, engine.submit(request_of(PROMPTS[at], max_tokens=9))) for at in (0, 1))
    next(good), next(bad)
    slot = next(slot for slot in engine._scheduler.slots if slot.tokens[: len(PROMPTS[1])] == PROMPTS[1]).index

    def poison(logits, batch):
        for row, state in enumerate(batch.states):
            if state.slot == slot:
                logits[row, FakeTokenizer.vocab_size + 1] = np.nan  # an id that is never chosen

    engine.runner.poison = poison
    with pytest.raises(NumericalError, match="NaN or infinite"):
        bad.drain()
    engine.runner.poison = None
    assert good.drain().tokens == greedy_ids(PROMPTS[0], 9)
    assert tokens_of(engine, PROMPTS[1:2]) == [greedy_ids(PROMPTS[1], 8)]


def test_a_runner_that_does_not_draw_is_asked_for_the_largest_alone() -> None:
    runner = ChoosingRunner()
    runner.draws = False
    engine = Engine(runner, runner.new_cache(geometry_of(), 1), 1)
    tokens_of(engine, [[1, 2]], max_tokens=3, temperature=0.0)
    assert runner.rows == [(1, 0)] * len(runner.rows) != []
    runner.rows.clear()
    tokens_of(engine, [[1, 2]], max_tokens=3, temperature=1.0, seed=1)
    assert runner.rows == []


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(1, 3), st.integers(1, 30), st.sampled_from([24, 40, 256]), st.data())
def test_tokens_ahead_change_nothing(most, slots, count, context, data):
    text = FakeTokenizer().decode(greedy_ids(PROMPTS[0], 30))
    at = data.draw(st.integers(0, len(text) - 2))
    options = {"max_tokens": count, "context": context, "stop": data.draw(st.sampled_from([(), (text[at : at + 2],)]))}
    found = []
    for ahead in (None, most):
        engine = choosing_engine(slots, 8, ahead, context)
        answers = [tokens_of(engine, [prompt], **options) for prompt in (PROMPTS[0], PROMPTS[1])]
        longer = [*PROMPTS[0], *answers[0][0], 7]  # what the slot holds is taken over
        answers.append(tokens_of(engine, [longer[-20:] if context < 60 else longer], **options))
        answers.append(tokens_of(engine, PROMPTS[:3], **options))
        found.append(answers)
    assert found[0] == found[1]


def test_ahead_is_for_one_sequence_and_no_further_than_wanted():
    engine = choosing_engine(ahead=100)
    assert tokens_of(engine, PROMPTS[:1], max_tokens=20) == [greedy_ids(PROMPTS[0], 20)]
    assert engine.runner.ahead == [7, 7, 3]
    engine.runner.ahead.clear()
    tokens_of(engine, PROMPTS[:1], max_tokens=20, temperature=0.5)
    assert set(engine.runner.ahead) == {0}
    engine = choosing_engine(slots=2, ahead=100)
    tokens_of(engine, PROMPTS[:2], max_tokens=3)
    assert engine.runner.ahead[0] == 0

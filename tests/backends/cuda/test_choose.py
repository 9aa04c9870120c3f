"""Tokens chosen on the device: the engine's, what comes back to the host, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgellm.backends.cuda.backend import CudaBackend
from edgellm.backends.cuda.runner import CudaRunner
from edgellm.backends.interface import Batch, Choice
from edgellm.backends.slots import SlotState
from edgellm.engine.engine import Engine
from edgellm.engine.eviction import raw_policy
from edgellm.engine.sampling import SamplingParams
from edgellm.engine.sequence import Request
from edgellm.engine.stream import Stream
from edgellm.errors import NumericalError, UsageError
from edgellm.model import fuse, open_model
from tests.backends.cuda.racing import drawn
from tests.backends.running import geometry
from tests.fakes import FakeTokenizer
from tests.golden_models import GOLDEN_FOLDER, cases

FEW = ("llama-gqa-head-dim", "gemma3", "olmo2")


class Ids(FakeTokenizer):
    """Every id of a model has a text."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def piece_bytes(self, token_id: int) -> bytes:
        return b"."


def load(name: str) -> CudaRunner:
    with open_model(GOLDEN_FOLDER / name) as model:
        return CudaBackend().load(fuse(model.weights.program), model.weights, lm_head="keep")


def engine_of(runner: CudaRunner, slots: int = 1) -> Engine:
    return Engine(runner, runner.new_cache(geometry(runner, 96, 16, "float16"), slots), slots)


def stream(engine: Engine, prompt: list[int], **options) -> Stream:
    params, tokenizer = SamplingParams(**options), Ids(engine.runner.program.config.vocab_size)
    return Stream(engine, engine.submit(Request(prompt, params, tokenizer, frozenset(), raw_policy("shift"))))


def brought_sizes(fake) -> list[int]:
    """Bytes of the copies to the host that are recorded or done from now on."""
    sizes, real = [], fake.cuMemcpyDtoHAsync_v2

    def counted(target, source, size, stream):
        sizes.append(size)
        return real(target, source, size, stream)

    fake.cuMemcpyDtoHAsync_v2 = counted
    return sizes


@pytest.mark.parametrize("case", [case for case in cases() if case.name in FEW], ids=str)
def test_an_engine_s_greedy_ids_are_those_of_transformers_and_four_bytes_come_back(case, shipped_gpu):
    sizes = brought_sizes(shipped_gpu(80))
    expected = case.reference()
    engine = engine_of(load(case.name))
    sizes.clear()
    result = stream(engine, expected["input_ids_1"].tolist(), max_tokens=3).drain()
    assert result.tokens == expected["greedy_1"][:3].tolist()
    assert sizes == [4, 4]  # of the prompt's last row, and in the graph that is replayed


def test_a_step_gives_tokens_of_some_rows_and_logits_of_others(shipped_gpu):
    shipped_gpu(80)
    runner = load("llama-mha")
    vocab_size = runner.program.config.vocab_size
    one, two = (runner.new_cache(geometry(runner, 16, 8, "float16"), 4) for _ in range(2))
    batch = Batch.of([(SlotState(slot), ids, "last") for slot, ids in enumerate(([3], [4, 5], [6], [7, 8, 9]))])
    logits = runner.run(one, batch)
    choices = (Choice(vocab_size), None, None, Choice(10))
    found = runner.choose(two, replace(batch, choices=choices))
    assert found.tokens.tolist() == [logits[0].argmax(), -1, -1, logits[3, :10].argmax()]
    np.testing.assert_array_equal(found.logits, logits[1:3])


def test_a_draw_is_the_record_s(shipped_gpu):
    """A race of exponentials by Philox, see `kernels/sampling.py`; that a row is a prompt's makes no difference."""
    shipped_gpu(80)
    runner = load("llama-mha")
    vocab_size, seed = runner.program.config.vocab_size, 0xFEDCBA9876543210
    caches = [runner.new_cache(geometry(runner, 16, 8, "float16"), 2) for _ in range(2)]
    batch = Batch.of([(SlotState(0), [3], "last"), (SlotState(1), [4, 5], "last")])
    logits = runner.run(caches[0], batch)
    limits = [{}, {"top_k": 5}, {"top_k": 9, "top_p": 0.5}]
    for draw, limit in enumerate(limits):
        choices = tuple(Choice(vocab_size, 0.7, **limit, seed=seed, draw=draw) for _ in range(2))
        tokens = runner.choose(caches[1], replace(batch, choices=choices)).tokens
        assert tokens.tolist() == [drawn(logits[row], choice) for row, choice in enumerate(choices)]


def test_sequences_side_by_side_draw_what_they_draw_alone(shipped_gpu):
    shipped_gpu(80)
    runner = load("llama-mha")
    options = {"max_tokens": 3, "temperature": 1.5, "top_p": 0.9, "seed": 5}
    prompts = [[3, 4, 5], [9, 8]]
    alone = [stream(engine_of(runner), prompt, **options).drain().tokens for prompt in prompts]
    engine = engine_of(runner, slots=2)
    together = [stream(engine, prompt, **options) for prompt in prompts]
    assert [each.drain().tokens for each in together] == alone


def test_a_logit_that_is_not_finite_ends_the_sequence(shipped_gpu, monkeypatch):
    shipped_gpu(80)
    runner = load("llama-mha")
    weights = runner._model.weights
    name = "norm"
    broken = np.full(runner.program.config.hidden_size, np.nan, np.float32)
    monkeypatch.setitem(weights.vectors, name, weights.put(broken))
    with pytest.raises(NumericalError, match="NaN or infinite"):
        stream(engine_of(runner), [3, 4, 5], max_tokens=2).drain()


def test_choices_that_do_not_fit_are_refused(shipped_gpu):
    shipped_gpu(80)
    runner = load("llama-mha")
    cache, choice = runner.new_cache(geometry(runner, 16, 8, "float16"), 1), Choice(10)
    batch = Batch.of([(SlotState(0), [3, 4], "all")])
    with pytest.raises(
        UsageError, match="choices: choices do not fit the step; found 1, allowed: one for each of 2 rows"
    ):
        runner.choose(cache, replace(batch, choices=(choice,)))
    with pytest.raises(UsageError, match="choices: no token is chosen there; found row 1"):
        runner.choose(cache, replace(batch, choices=(None, choice)))
    assert runner.choose(cache, batch).logits.shape[0] == 2

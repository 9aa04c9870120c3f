"""Whole models on a GPU that is emulated, against what transformers and the reference compute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgellm.backends import find
from edgellm.backends.cuda.backend import CudaBackend
from edgellm.backends.cuda.measure import Yardstick
from edgellm.backends.cuda.runner import CudaRunner
from edgellm.backends.interface import Batch, Runner, StepStopped
from edgellm.backends.slots import SlotState
from edgellm.backends.split import SplitBackend, SplitRunner
from edgellm.cli import tracing
from edgellm.errors import BackendUnavailable, EngineClosed, UsageError
from edgellm.model import fuse, open_model
from edgellm.model.cut import cut_layers
from edgellm.model.program import Op
from tests.backends.running import geometry, greedy, logits_of, relative_error
from tests.golden_models import GOLDEN_FOLDER, cases

#: Weights and keys are float16, activations of prompts too: what that costs on these models.
BOUND = 1e-2
FEW = ("llama-gqa-head-dim", "gemma3", "olmo2")


def load(name: str, backend=None, *, layers: tuple[int, int] | None = None, **options: str) -> Runner:
    with open_model(GOLDEN_FOLDER / name) as model:
        program = fuse(model.weights.program)
        if layers:
            program = cut_layers(program, *layers)
        return (backend or CudaBackend()).load(program, model.weights, **options)


@pytest.mark.parametrize("case", [case for case in cases() if case.name in FEW], ids=str)
def test_logits_and_greedy_ids_are_those_of_transformers(case, shipped_gpu):
    shipped_gpu(80)
    runner, expected = load(case.name, lm_head="keep"), case.reference()
    ids = expected["input_ids_1"]
    logits = logits_of(runner, ids, chunk=16, dtype="float16")
    assert relative_error(logits[expected["pos_1"]], expected["logits_1"]) < BOUND
    assert greedy(runner, ids, 3, chunk=16, dtype="float16") == expected["greedy_1"][:3].tolist()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_sequences_beside_each_other_evicted_and_not(dtype, shipped_gpu):
    shipped_gpu(80)
    runner, reference = load("llama-mha", lm_head="keep"), load("llama-mha", find("reference"))
    caches = [each.new_cache(geometry(each, 12, 8, dtype), 3) for each in (runner, reference)]
    states = [SlotState(0, sinks=2), SlotState(1), SlotState(2)]
    prompts = [list(range(3, 13)), list(range(20, 25)), [7]]
    for step in range(3):
        batch = Batch.of([(state, ids[:8], "all") for state, ids in zip(states, prompts, strict=True)])
        found, expected = (each.run(cache, batch) for each, cache in zip((runner, reference), caches, strict=True))
        assert relative_error(found, expected) < (BOUND if dtype == "float16" else 5e-2)
        states = [state.extended(min(len(ids), 8)) for state, ids in zip(states, prompts, strict=True)]
        states[0] = states[0].evict(4) if step == 0 else states[0]
        prompts = [[5], [6], [8]]


def test_layers_alone_take_hidden_states_and_give_them(shipped_gpu):
    shipped_gpu(80)
    runner = load("llama-mha", layers=(0, 1))
    reference = load("llama-mha", find("reference"), layers=(0, 1))
    hidden = np.random.default_rng(0).normal(size=(3, runner.program.config.hidden_size)).astype(np.float32)
    batch = replace(Batch.of([(SlotState(0), [0, 0, 0], "none")]), inputs={"x": hidden})
    caches = [each.new_cache(geometry(each, 8, 8, "float16"), 1) for each in (runner, reference)]
    assert relative_error(runner.run(caches[0], batch), reference.run(caches[1], batch)) < BOUND
    with pytest.raises(UsageError, match="x: does not fit the program; found nothing"):
        runner.run(caches[0], replace(batch, inputs={}))


def test_a_layer_takes_five_launches(shipped_gpu):
    fake = shipped_gpu(80)
    runner = load("llama-gqa-head-dim", lm_head="keep")
    cache = runner.new_cache(geometry(runner, 16, 8, "float16"), 1)
    state = SlotState(0)
    for token in (3, 4, 5):
        runner.run(cache, Batch.of([(state, [token], "last")]))
        state = state.extended(1)
    layers = runner.program.config.num_hidden_layers
    assert cache.steps.launches(1) == 2 + 1 + 5 * layers + 1  # record up, logits down; embedding; lm_head
    assert fake.calls["cuGraphLaunch"] == 3
    assert fake.calls["cuGraphInstantiateWithFlags"] == 1


def test_a_prompt_that_nobody_wants_any_more(shipped_gpu):
    shipped_gpu(80)
    runner = load("llama-mha", layers=(0, 1))
    cache = runner.new_cache(geometry(runner, 32, 32, "float16"), 1)
    hidden = np.zeros((17, runner.program.config.hidden_size), np.float32)
    batch = replace(Batch.of([(SlotState(0), [0] * 17, "none")]), inputs={"x": hidden})
    with pytest.raises(StepStopped):
        runner.run(cache, batch, stopped=lambda: True)
    assert runner.run(cache, batch, stopped=lambda: False).shape == hidden.shape


def test_what_runs_where_and_its_end(shipped_gpu):
    shipped_gpu(90)
    runner = load("llama-tied", lm_head="int4", device="cuda:0")
    assert isinstance(runner, CudaRunner)
    described = runner.describe()
    assert (described["backend"], described["isa"], described["lm_head"]) == ("cuda", "sm_90", "int4")
    assert described["device"].startswith("cuda:0 ")
    cache = runner.new_cache(geometry(runner, 8, 8, "float16"), 1)
    runner.close()
    runner.close()
    with pytest.raises(EngineClosed):
        runner.run(cache, Batch.of([(SlotState(0), [1], "last")]))


def test_a_program_with_an_unknown_op_is_refused(fake_gpu):
    fake_gpu(80)
    with open_model(GOLDEN_FOLDER / "llama-mha") as model:
        program = fuse(model.weights.program)
        strange = replace(program, ops=(*program.ops, Op("route", (), ())))
        with pytest.raises(BackendUnavailable, match="op: the CUDA backend has no such op; found route"):
            CudaBackend().load(strange, model.weights)
        with pytest.raises(UsageError, match="lm_head: no such choice"):
            CudaBackend().load(program, model.weights, lm_head="int5")


@pytest.mark.parametrize("tokens", [3, 12])
def test_a_trace_shows_every_buffer(tokens, shipped_gpu):
    shipped_gpu(80)
    name = "llama-gqa-head-dim"
    runner, reference = load(name, lm_head="keep"), load(name, find("reference"))
    ids = tracing.prompt(runner.program.config.vocab_size, tokens)
    found, expected = (tracing.run_traced(each, ids, "float16") for each in (runner, reference))
    assert [event.buffer for event in found] == [event.buffer for event in expected]
    assert tracing.compare(expected, found, BOUND * 3).first_beyond is None
    cache = runner.new_cache(geometry(runner, 16, 8, "float16"), 2)
    two = Batch.of([(SlotState(0), [3, 4], "last"), (SlotState(1), [5, 6], "last")])
    with pytest.raises(UsageError, match="a trace on this backend takes one step; found 2 steps"):
        runner.run(cache, two, lambda index, buffers: None)


def test_a_profile_has_every_launch_and_what_it_reads(shipped_gpu):
    shipped_gpu(80)
    runner = load("llama-gqa-head-dim", lm_head="keep")
    cache = runner.new_cache(geometry(runner, 16, 8, "float16"), 1)
    times = runner.profile(cache, Batch.of([(SlotState(0, end=3), [4], "last")]))
    layers = runner.program.config.num_hidden_layers
    layer = ["gemv", "attention_decode", "gemv", "gemv", "gemv"]
    assert [time.kind for time in times] == ["embed", *layer * layers, "gemv"]
    assert sum(time.nbytes for time in times if time.kind == "gemv") == runner.describe()["work"]["weight_bytes"]
    assert [time.nbytes for time in times if time.kind == "attention_decode"] == [2 * 2 * 4 * 16 * 2] * layers
    assert all(time.seconds > 0 for time in times)


def test_the_yardstick_copies_and_goes(fake_gpu):
    fake = fake_gpu(80)
    with Yardstick(0, 1 << 20) as yardstick:
        assert yardstick.copy_bandwidth(0.001) > 0
    assert fake.calls["cuMemFree_v2"] == fake.calls["cuMemAlloc_v2"] == 2


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_split_between_gpu_and_cpu_gives_the_same_ids(layers, shipped_gpu):
    shipped_gpu(80)
    name = "llama-tied"
    runner = load(name, SplitBackend(CudaBackend(), find("reference"), layers))
    assert isinstance(runner, SplitRunner)
    case = next(case for case in cases() if case.name == name)
    expected = case.reference()
    assert greedy(runner, expected["input_ids_1"], 2, chunk=16, dtype="float16") == expected["greedy_1"][:2].tolist()
    assert runner.describe()["backend"] == "cuda+reference"
    runner.close()

"""Whole models on the CPU backend, against the reference: every architecture, batches, rings, traces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgellm.backends import find
from edgellm.backends.cpu.backend import CpuBackend
from edgellm.backends.cpu.optable import Kind
from edgellm.backends.interface import Batch, Runner
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.backends.split import cut_in_two
from edgellm.errors import BackendUnavailable, UsageError
from edgellm.model import fuse, open_model
from edgellm.model.cut import cut_layers
from tests.backends.cpu.kernels import WITHOUT_JIT
from tests.backends.running import geometry, greedy, load, logits_of, prefill, relative_error
from tests.golden_models import GOLDEN_FOLDER, GoldenCase, cases

#: Stored in 16 bits, so that the packed weights are exactly those of the file.
EXACT = ("llama-mha", "tinyllama", "qwen2-mixed-window", "phi3-partial-rope")
compiled_only = pytest.mark.skipif(WITHOUT_JIT, reason="too much for plain Python; test_quantized_models.py is smaller")


def load_cpu(
    folder, *, threads: int = 2, lm_head: str = "keep", activations: str = "int16", fused: bool = True
) -> Runner:
    with open_model(folder) as model:
        program = fuse(model.weights.program) if fused else model.weights.program
        return CpuBackend().load(program, model.weights, threads=threads, lm_head=lm_head, activations=activations)


@pytest.fixture
def runners(request):
    made = []
    yield lambda *args, **options: made.append(load_cpu(*args, **options)) or made[-1]
    for runner in made:
        runner.close()


@compiled_only
@pytest.mark.parametrize("case", [case for case in cases() if case.name in EXACT], ids=str)
@pytest.mark.parametrize("chunk", [1, 5, 128])
def test_logits_equal_transformers_where_weights_are_stored_in_16_bits(case: GoldenCase, chunk: int, runners) -> None:
    runner, expected = runners(case.folder), case.reference()
    for i in (0, 1):
        logits = logits_of(runner, expected[f"input_ids_{i}"], chunk=chunk)
        assert relative_error(logits[expected[f"pos_{i}"]], expected[f"logits_{i}"]) < 1e-4


@compiled_only
@pytest.mark.parametrize("case", cases(), ids=str)
def test_every_architecture_goes_on_with_the_same_ids(case: GoldenCase, runners) -> None:
    runner, expected = runners(case.folder), case.reference()
    ids = expected["input_ids_0"]
    # float32 weights are rounded to float16, by 2^-12 of each; these random models pass that on without attenuation
    assert relative_error(logits_of(runner, ids)[expected["pos_0"]], expected["logits_0"]) < 1e-2
    assert greedy(runner, ids, 48) == expected["greedy_0"].tolist()


@compiled_only
def test_threads_do_not_change_a_bit(runners) -> None:
    folder = GOLDEN_FOLDER / "qwen2-mixed-window"
    ids = np.random.default_rng(1).integers(3, 90, 70).tolist()
    alone = logits_of(runners(folder, threads=1), ids, chunk=33, dtype="float16")
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(
            logits_of(runners(folder, threads=threads), ids, chunk=33, dtype="float16"), alone
        )


def test_the_plain_program_gives_what_the_fused_one_gives(runners) -> None:
    folder, ids = GOLDEN_FOLDER / "tinyllama", list(range(3, 6 if WITHOUT_JIT else 40))
    plain, fused = (logits_of(runners(folder, fused=flag), ids) for flag in (False, True))
    assert relative_error(plain, fused) < 1e-5


@compiled_only
@pytest.mark.parametrize("name", EXACT[:3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_ring_with_evictions_equals_the_reference_on_the_same_ring(name: str, dtype: str, runners) -> None:
    folder, rng = GOLDEN_FOLDER / name, np.random.default_rng(5)
    pair = [runners(folder), load(folder)]
    layout = geometry(pair[0], 40, 6, dtype)
    caches = [runner.new_cache(layout, 2) for runner in pair]
    state = SlotState(1, sinks=3)
    # keys are rounded turned here and unturned there, so narrow storage differs by its own rounding
    bound = {"float32": 1e-4, "float16": 1e-2, "int8": 2e-1}[dtype]
    for _ in range(30):
        part = rng.integers(3, 90, rng.integers(1, 7)).tolist()
        room = layout.room(state)
        if room is not None and room < len(part):
            state = state.evict(11)
        batch = Batch.of([(state, part, "all")])
        found, expected = (runner.run(cache, batch) for runner, cache in zip(pair, caches, strict=True))
        assert relative_error(found, expected) < bound
        state = state.extended(len(part))
    assert layout.unbounded or state.evicted > 40


@compiled_only
def test_a_batch_gives_each_sequence_what_it_gets_alone(runners) -> None:
    runner = runners(GOLDEN_FOLDER / "tinyllama")
    rng = np.random.default_rng(2)
    ids = [rng.integers(3, 90, count).tolist() for count in (1, 17, 40, 5)]
    cache = runner.new_cache(geometry(runner, 64, 64), 5)
    wanted = ["last", "all", "none", "all"]
    together = runner.run(cache, Batch.of([(SlotState(4 - i), ids[i], wanted[i]) for i in range(4)]))
    alone = [logits_of(runner, one) for one in ids]
    expected = np.concatenate([alone[0][-1:], alone[1], alone[3]])
    np.testing.assert_allclose(together, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@compiled_only
def test_an_exported_slot_goes_on_where_it_was(runners) -> None:
    runner = runners(GOLDEN_FOLDER / "qwen2-mixed-window")
    ids = np.random.default_rng(3).integers(3, 90, 60).tolist()
    layout = geometry(runner, 32, 4, "float16")
    first, second = runner.new_cache(layout, 2), runner.new_cache(layout, 3)
    _, state = prefill(runner, first, SlotState(1, sinks=2), ids[:30])
    _, state = prefill(runner, first, state.evict(9), ids[30:36])
    moved, copied = replace(state, slot=2), replace(state, slot=0)
    second.import_slot(moved, first.export_slot(state))
    first.copy_slot(state, 0)
    expected, _ = prefill(runner, first, state, ids[36:40])
    for cache, other in ((second, moved), (first, copied)):
        np.testing.assert_array_equal(prefill(runner, cache, other, ids[36:40])[0], expected)


def test_a_trace_shows_the_buffers_of_the_program(runners) -> None:
    folder, ids = GOLDEN_FOLDER / "tinyllama", [3, 14, 15, 9]
    seen: list[list[np.ndarray]] = []
    for runner in (runners(folder), load(folder)):
        written: list[np.ndarray] = []

        def trace(index, buffers, runner=runner, written=written):
            written.extend(buffers[name].copy() for name in runner.program.ops[index].outputs)

        cache = runner.new_cache(geometry(runner, 8, 8), 1)
        runner.run(cache, Batch.of([(SlotState(0), ids, "last")]), trace)
        seen.append(written)
    assert len(seen[0]) == len(seen[1]) > 20
    for found, expected in zip(*seen, strict=True):
        assert relative_error(found, expected) < 1e-4


@compiled_only
def test_int8_activations_and_head_stay_near(runners) -> None:
    folder, ids = GOLDEN_FOLDER / "tinyllama", list(range(3, 60))
    exact = logits_of(runners(folder), ids)
    narrow = logits_of(runners(folder, lm_head="int8", activations="int8"), ids)
    assert 1e-5 < relative_error(narrow, exact) < 0.1


def test_nan_in_a_weight_reaches_the_logits(runners) -> None:
    runner = runners(GOLDEN_FOLDER / "tinyllama")
    assert np.isfinite(logits_of(runner, [5])).all()
    packed = runner._model[1]
    norm = next(row for row in runner._lowered.table if row["kind"] == Kind.RMS_NORM)
    packed[norm["weight"] : norm["weight"] + 4].view(np.float32)[:] = np.nan
    assert not np.isfinite(logits_of(runner, [5])).any()


@pytest.mark.parametrize("options", [{"lm_head": "int2"}, {"activations": "float"}, {"threads": 0}], ids=str)
def test_choices_that_do_not_exist_are_named(options: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        load_cpu(GOLDEN_FOLDER / "tinyllama", **options)


@pytest.mark.parametrize(("lm_head", "stored"), [("keep", "float16"), ("int8", "int8"), ("int4", "int4")])
def test_the_plan_is_what_a_loaded_model_holds(lm_head: str, stored: str, runners) -> None:
    folder = GOLDEN_FOLDER / "tinyllama"
    runner = runners(folder, lm_head=lm_head)
    layout = geometry(runner, 40, 6, "int8")
    with open_model(folder) as model:
        plan = CpuBackend().plan_bytes(runner.program, model.weights, layout, 3, lm_head=lm_head, activations="int8")
    assert runner.weight_nbytes <= plan.weights <= 1.05 * runner.weight_nbytes  # ends of lines between small weights
    assert plan.cache == runner.new_cache(layout, 3).nbytes
    assert (plan.lm_head, 0 < plan.lm_head_bytes < plan.weights) == (stored, True)


def test_a_part_without_logits_is_refused():
    with open_model(GOLDEN_FOLDER / "llama-mha") as model:
        part = cut_layers(fuse(model.weights.program), 0, 1)
        with pytest.raises(BackendUnavailable, match="result: the CPU backend gives logits alone; found x"):
            CpuBackend().load(part, model.weights)
        with pytest.raises(BackendUnavailable, match="reference"):
            CpuBackend().plan_bytes(part, model.weights, CacheGeometry(8, (None,), 1, 8, 8, "float32"), 1)


@pytest.mark.parametrize("name", ["llama-tied", "qwen3"])
def test_the_last_layers_by_themselves(name):
    """What the reference's first layers give goes in, and its logits come out."""
    with open_model(GOLDEN_FOLDER / name) as model:
        program = fuse(model.weights.program)
        head, tail = cut_in_two(program, 1)
        ids = list(range(3, 12))
        batch = Batch.of([(SlotState(0), ids, "all")])
        states = {}
        for part in (head, tail):
            runner = find("reference").load(part, model.weights)
            states[part.result] = runner.run(runner.new_cache(geometry(runner, 16, 16), 1), batch)
            batch = replace(batch, inputs={head.result: states[head.result]})
        runner = CpuBackend().load(tail, model.weights, threads=1, lm_head="keep", activations="int16")
        cache = runner.new_cache(geometry(runner, 16, 16), 1)
        assert relative_error(runner.run(cache, batch), states["logits"]) < 2e-3
        with pytest.raises(UsageError, match=r"x: does not fit the program; found nothing, allowed: float32 \[9, 32\]"):
            runner.run(cache, replace(batch, inputs={}))
        runner.close()

"""One model on two backends, by the reference twice: programs, caches, traces and plans of both parts as one."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends import find
from edgellm.backends.interface import Batch
from edgellm.backends.slots import SlotState
from edgellm.backends.split import SplitBackend, cut_in_two, most_layers
from edgellm.errors import UsageError
from edgellm.model import fuse, open_model
from tests.backends.running import geometry, logits_of, prefill
from tests.golden_models import GOLDEN_FOLDER

IDS = list(range(3, 12))


def load(name: str, layers: int | None, **options):
    reference = find("reference")
    backend = reference if layers is None else SplitBackend(reference, reference, layers)
    with open_model(GOLDEN_FOLDER / name) as model:
        return backend.load(fuse(model.weights.program), model.weights, **options)


@pytest.mark.parametrize("name", ["llama-tied", "qwen2-mixed-window", "gemma3"])
def test_a_split_changes_nothing(name):
    whole = load(name, None)
    expected = logits_of(whole, IDS, chunk=4)
    for layers in range(1, whole.program.config.num_hidden_layers):
        np.testing.assert_array_equal(logits_of(load(name, layers), IDS, chunk=4), expected)


def test_slots_are_copied_exported_and_imported_as_of_the_whole():
    runner, whole = load("llama-tied", 1), load("llama-tied", None)
    cache, other, same = (each.new_cache(geometry(each, 16, 16), 2) for each in (runner, runner, whole))
    _, state = prefill(runner, cache, SlotState(0), IDS)
    prefill(whole, same, SlotState(0), IDS)
    exported, expected = cache.export_slot(state), same.export_slot(state)
    assert exported.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(exported[name], expected[name])
    assert cache.nbytes == same.nbytes
    other.import_slot(state, exported)
    other.copy_slot(state, 1)
    batch = Batch.of([(SlotState(1, end=state.end), [5], "last")])
    np.testing.assert_array_equal(runner.run(other, batch), whole.run(same, Batch.of([(state, [5], "last")])))


def test_a_trace_sees_every_op_once_by_its_number():
    runner = load("llama-tied", 1)
    seen = []
    cache = runner.new_cache(geometry(runner, 16, 16), 1)
    runner.run(cache, Batch.of([(SlotState(0), IDS, "last")]), lambda index, buffers: seen.append(index))
    assert seen == list(range(len(runner.program.ops)))


def test_plans_add_up_and_progress_reaches_its_end():
    reference = find("reference")
    with open_model(GOLDEN_FOLDER / "llama-tied") as model:
        program = fuse(model.weights.program)
        layout = geometry(load("llama-tied", None), 16, 16)
        head, tail = cut_in_two(program, 1)
        one, two = (reference.plan_bytes(part, model.weights, layout, 2) for part in (program, head))
        split = SplitBackend(reference, reference, 1).plan_bytes(program, model.weights, layout, 2)
        assert split.cache == one.cache
        assert split.weights > two.weights
    told: list[tuple[int, int]] = []
    runner = load("llama-tied", 1, progress=lambda done, total: told.append((done, total)))
    assert all(0 <= done <= total + 1 for done, total in told)
    assert told[-1][0] >= told[-1][1] - 1
    assert runner.describe()["device"] == f"cpu (layers 1 to 1 of {program.config.num_hidden_layers}) and cpu"
    assert len(tail.ops) > 1


@pytest.mark.parametrize("layers", [0, 3, -1])
def test_no_such_split(layers):
    with open_model(GOLDEN_FOLDER / "llama-tied") as model:
        program = fuse(model.weights.program)
        count = program.config.num_hidden_layers
        with pytest.raises(UsageError, match=f"gpu_layers: no such split.* of {count} layers"):
            cut_in_two(program, count if layers == 3 else layers)


@pytest.mark.parametrize("most", range(6))
def test_the_most_layers_that_fit(most):
    asked = []
    assert most_layers(5, lambda count: asked.append(count) or count <= most) == most
    assert len(asked) <= 3

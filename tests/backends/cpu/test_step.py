"""What the walker is told of a step, in arrays that stay; and that a runner keeps no cache alive."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from edgellm.backends.cpu import arena, attention_plan
from edgellm.backends.cpu.arena import LARGE_PAGE_BYTES, aligned_zeros, populate
from edgellm.backends.cpu.attention_plan import plan_step, rope_tables
from edgellm.backends.cpu.step import StepArrays, _joined_kinds, _joined_tables
from edgellm.backends.cpu.walker import go_on
from edgellm.backends.interface import Batch, LogitsUse
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.model.rope import Rope
from tests.backends.running import geometry, prefill

ROPES = (Rope(10000.0, 8), Rope(500.0, 4))


def geometry_of(*windows: int | None, context: int = 700) -> CacheGeometry:
    return CacheGeometry(context, windows, 2, 8, 64)


def filled(arrays: StepArrays, geometry: CacheGeometry, parts: list, use: LogitsUse = LogitsUse.ALL) -> tuple:
    """A step's arrays, each proven to begin with what the plan says."""
    batch = Batch.of(parts, logits_use=use)
    plan = plan_step(geometry, batch, 2)
    found = arrays.fill(geometry, batch)
    tables = _joined_tables([rope_tables(rope, plan) for rope in ROPES])
    bounds, joined = _joined_kinds(plan.kinds)
    counts = [len(batch.token_ids), len(batch.logits_rows), batch.logits_use]
    values = (counts, batch.token_ids, batch.logits_rows, plan.tokens, *joined, bounds, *tables)
    for array, value in zip(found[: len(values)], values, strict=True):
        np.testing.assert_array_equal(array[: len(value)], np.reshape(value, (len(value), *array.shape[1:])))
    assert arrays.partials == plan.partials
    return found


def test_arrays_stay_while_steps_fit() -> None:
    arrays, geometry, state = StepArrays(ROPES, 2), geometry_of(None), SlotState(0)
    first = filled(arrays, geometry, [(state, list(range(40)), "all")])
    state = state.extended(40)
    for _ in range(3):
        assert filled(arrays, geometry, [(state, [3], "last")]) is first
        state = state.extended(1)
    longer = filled(arrays, geometry, [(state, list(range(60)), "last"), (SlotState(1), [1, 2], "none")])
    assert longer is not first
    assert longer[2] is first[2]  # this one was long enough
    assert filled(arrays, geometry, [(state, [3], "last")]) is longer


def test_another_cache_has_other_columns() -> None:
    arrays, one, two = StepArrays(ROPES, 2), geometry_of(None), geometry_of(None, 9)
    first = filled(arrays, one, [(SlotState(0), [1, 2, 3], "last")])
    second = filled(arrays, two, [(SlotState(0), [1, 2, 3], "last")])
    assert (first[3].shape[1], second[3].shape[1]) == (3, 4)
    assert filled(arrays, two, [(SlotState(0), [1], "none")]) is second


@pytest.mark.parametrize("windows", [(None,), (None, 9), (9,)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_token_by_token_as_planned(windows: tuple, seed: int, monkeypatch) -> None:
    """Long answers over the ends of spans, with what may come between: rewinding, eviction, other slots and wishes."""
    monkeypatch.setattr(attention_plan, "_SPAN", 64)
    draw = np.random.default_rng(seed)
    arrays, geometry = StepArrays(ROPES, 2), geometry_of(*windows)
    states = [SlotState(0), SlotState(1)]
    for _ in range(250):
        slot, count, kind = int(draw.random() < 0.02), int(draw.choice([1, 1, 1, 1, 1, 1, 1, 30])), draw.random()
        state = states[slot]
        if kind < 0.02 and geometry.can_rewind(state, max(state.length - 3, 0)):
            state = state.rewound(max(state.length - 3, 0))
        elif 0.02 < kind < 0.03 and state.length > 20:
            state = state.evict(10)
        if (room := geometry.room(state)) is not None and room < count:
            state = state.evict(count - room)
        tokens = draw.integers(0, 999, count).tolist()
        use = LogitsUse(draw.random() < 0.05)
        filled(arrays, geometry, [(state, tokens, "none" if kind > 0.99 else "last")], use)
        states[slot] = state.extended(count)


def test_only_what_changes_is_planned(monkeypatch) -> None:
    planned = []
    real = StepArrays._plan
    monkeypatch.setattr(StepArrays, "_plan", lambda self, *args: planned.append(1) or real(self, *args))
    arrays, geometry, state = StepArrays(ROPES, 2), geometry_of(None), SlotState(0)
    for token in range(600):
        filled(arrays, geometry, [(state, [token], "last")])
        state = state.extended(1)
    assert len(planned) == 3  # spans of 256


def test_the_walker_goes_on_as_python_does() -> None:
    arrays, twin, geometry = StepArrays(ROPES, 2), StepArrays(ROPES, 2), geometry_of(None)
    state, turns, length = SlotState(0).extended(5), [], 5
    while length < 600:
        found, batch = arrays.fill(geometry, Batch.of([(state, [length], "last")])), None
        steps = arrays.may_go_on(7)
        turns.append(steps)
        for number in range(length + 1, length + 1 + steps):
            go_on(found, number)
            found[13][number - length - 1] = number
            batch = Batch.of([(SlotState(0).extended(number), [number], "last")])
            for array, value in zip(found[:11], twin.fill(geometry, batch), strict=False):
                np.testing.assert_array_equal(array[: len(value)], value[: len(array)])
        found[13][steps] = 1
        assert arrays.gone_on(steps).tolist() == [*range(length + 1, length + 1 + steps), 1]
        length += 1 + steps
        state = SlotState(0).extended(length)
    assert max(turns) == 7
    for length, steps in ((253, 2), (255, 0), (62, 1), (63, 7)):  # to the end of a span, and of a block of positions
        arrays.fill(geometry, Batch.of([(SlotState(0).extended(length), [length], "last")]))
        assert arrays.may_go_on(7) == steps


def test_nothing_goes_on_behind_several_tokens_or_an_eviction() -> None:
    arrays, geometry = StepArrays(ROPES, 2), geometry_of(None)
    for state, ids in ((SlotState(0), [1, 2]), (SlotState(0).extended(50).evict(10), [3])):
        arrays.fill(geometry, Batch.of([(state, ids, "last")]))
        assert arrays.may_go_on(7) == 0
    arrays.fill(geometry_of(None, 9), Batch.of([(SlotState(0), [1], "last")]))
    assert arrays.may_go_on(7) == 0


def test_a_cache_that_nobody_has_is_freed(runner) -> None:
    ids = list(range(3, 23))
    caches = [runner.new_cache(geometry(runner, 64, 16), 1) for _ in range(2)]
    logits = [prefill(runner, cache, SlotState(0), ids)[0] for cache in caches]
    np.testing.assert_array_equal(*logits)
    bytes_of = [weakref.ref(cache.data) for cache in caches]
    del caches[1]
    gc.collect()
    assert (bytes_of[0]() is None, bytes_of[1]() is None) == (False, True)
    again, _ = prefill(runner, caches[0], SlotState(0), ids)
    np.testing.assert_array_equal(again, logits[0])


def test_only_what_is_named_is_populated(monkeypatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(arena, "_advise", lambda: lambda first, nbytes, advice: asked.append((first, nbytes)) or 0)
    memory = np.zeros(9 * LARGE_PAGE_BYTES, np.uint8)
    base = memory.ctypes.data
    populate(memory, [0, 100, 5 * LARGE_PAGE_BYTES], 1000)
    assert len(asked) == 2
    for (first, nbytes), begin in zip(asked, (0, 5 * LARGE_PAGE_BYTES), strict=True):
        assert first <= base + begin + 4096
        assert first + nbytes >= base + begin + 1000
        assert base <= first <= first + nbytes <= base + memory.nbytes
        assert nbytes <= 2 * LARGE_PAGE_BYTES


@pytest.mark.parametrize("advise", [None, lambda *_: -1], ids=["no such system", "no such kernel"])
def test_where_nothing_is_populated_nothing_is_lost(advise, monkeypatch) -> None:
    monkeypatch.setattr(arena, "_advise", lambda: advise)
    memory = aligned_zeros(LARGE_PAGE_BYTES, np.uint8)
    populate(memory, [0], 10)
    assert not memory.any()

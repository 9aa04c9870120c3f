"""The ring cache of the reference against a float64 decoder that keeps lists: evictions, windows, wraps, copies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgellm.backends.interface import Batch
from edgellm.backends.slots import SlotState
from edgellm.errors import ModelError
from tests.backends.naive import NaiveDecoder
from tests.backends.running import geometry, load, logits_of, prefill, relative_error
from tests.golden_models import GOLDEN_FOLDER

FULL = ("llama-gqa-head-dim", "llama3-rope", "qwen2", "qwen3")
WINDOWED = ("mistral-window", "qwen2-mixed-window")


def _ids(count: int) -> list[int]:
    return np.random.default_rng(3).integers(3, 90, count).tolist()


@pytest.mark.parametrize("name", FULL + WINDOWED)
def test_after_evictions_logits_equal_float64_attention_over_what_is_kept(name: str) -> None:
    folder, sinks, context = GOLDEN_FOLDER / name, 3, 24
    runner, naive, ids = load(folder), NaiveDecoder(folder), _ids(70)
    cache = runner.new_cache(geometry(runner, context, 5), 2)
    state = SlotState(1, sinks=sinks)
    worst, wraps = 0.0, 0
    for token in ids:
        if state.length == context:
            state = state.evict(7)
            naive.evict(sinks, sinks + 7)
            wraps += 1
        logits, state = prefill(runner, cache, state, [token])
        worst = max(worst, relative_error(logits[0], naive.step(token)))
    assert wraps >= 5
    assert worst < 1e-4


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("name", FULL)
def test_narrow_storage_attends_to_exactly_what_it_stores(name: str, dtype: str) -> None:
    folder, sinks, context = GOLDEN_FOLDER / name, 3, 24
    runner, naive, ids = load(folder), NaiveDecoder(folder), _ids(40)
    cache = runner.new_cache(geometry(runner, context, 5, dtype), 1)
    state = SlotState(0, sinks=sinks)
    for token in ids:
        if state.length == context:
            state = state.evict(4)
            naive.evict(sinks, sinks + 4)
        logits, state = prefill(runner, cache, state, [token])
        slot = cache.export_slot(state)
        stored = []
        for layer in range(runner.program.config.num_hidden_layers):
            pair = [slot[f"layers.{layer}.{kind}"].astype(np.float64) for kind in ("keys", "values")]
            if dtype == "int8":
                for i, kind in enumerate(("keys", "values")):
                    pair[i] *= slot[f"layers.{layer}.{kind}_scales"][..., None]
            stored.append(tuple(pair))
        assert relative_error(logits[0], naive.step(token, stored)) < 1e-3


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_a_sliding_ring_equals_the_full_history_under_the_window_mask(name: str, chunk: int) -> None:
    runner, ids = load(GOLDEN_FOLDER / name), _ids(200)
    config = runner.program.config
    window = max(window for window in config.layer_windows if window)
    small = geometry(runner, 200, chunk)  # rings of window - 1 + chunk rows: at least five wraps
    assert any(small.ring_window(layer) for layer in range(config.num_hidden_layers))
    assert 200 / (window - 1 + chunk) > 5
    ringed, _ = prefill(runner, runner.new_cache(small, 1), SlotState(0), ids)
    whole = logits_of(runner, ids, chunk=200)  # one chunk: nothing is ever overwritten
    assert relative_error(ringed, whole) < 1e-4


def test_an_all_sliding_model_never_has_to_evict() -> None:
    runner, ids = load(GOLDEN_FOLDER / "mistral-window"), _ids(300)
    small = geometry(runner, 40, 8)
    assert small.unbounded
    ringed, state = prefill(runner, runner.new_cache(small, 1), SlotState(0), ids)
    assert state.length == 300
    assert small.slot_nbytes < geometry(runner, 300, 300).slot_nbytes / 5
    assert relative_error(ringed, logits_of(runner, ids, chunk=300)) < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("name", ["qwen3", "qwen2-mixed-window"])
def test_an_exported_slot_goes_on_where_it_was(name: str, dtype: str) -> None:
    runner, ids = load(GOLDEN_FOLDER / name), _ids(60)
    layout = geometry(runner, 32, 4, dtype)
    first, second = runner.new_cache(layout, 2), runner.new_cache(layout, 3)
    _, state = prefill(runner, first, SlotState(1, sinks=2), ids[:30])
    state = state.evict(9)
    _, state = prefill(runner, first, state, ids[30:36])
    _, state = prefill(runner, first, state, ids[36:39])
    state = state.rewound(state.length - 3)  # what those three overwrote in a sliding layer is not exported
    moved = replace(state, slot=2)
    second.import_slot(moved, first.export_slot(state))
    copied = replace(state, slot=0)
    first.copy_slot(state, 0)
    expected, _ = prefill(runner, first, state, ids[36:40])
    for cache, other in ((second, moved), (first, copied)):
        np.testing.assert_array_equal(prefill(runner, cache, other, ids[36:40])[0], expected)


def test_a_slot_that_was_not_ours_is_refused() -> None:
    runner = load(GOLDEN_FOLDER / "qwen3")
    cache = runner.new_cache(geometry(runner, 16, 4), 1)
    _, state = prefill(runner, cache, SlotState(0), _ids(6))
    slot = cache.export_slot(state)
    name = "layers.1.values"
    wrong = [
        {key: array for key, array in slot.items() if key != name},
        {**slot, name: slot[name][:-1]},
        {**slot, name: slot[name].astype(np.float16)},
        {**slot, name: np.full_like(slot[name], np.nan)},
    ]
    for tensors in wrong:
        with pytest.raises(ModelError, match=name):
            cache.import_slot(state, tensors)


def test_infinite_weights_reach_the_logits_instead_of_raising() -> None:
    runner = load(GOLDEN_FOLDER / "qwen3")
    runner._arrays["norm"][0] = np.nan
    cache = runner.new_cache(geometry(runner, 8, 4), 1)
    assert not np.isfinite(runner.run(cache, Batch.of([(SlotState(0), [5], "last")]))).any()

"""Rings of the CPU's cache over many wraps: the full history under the window mask, and the reference's own ring."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.slots import SlotState
from tests.backends.cpu.kernels import WITHOUT_JIT
from tests.backends.cpu.test_model import load_cpu
from tests.backends.running import geometry, load, logits_of, prefill, relative_error
from tests.golden_models import GOLDEN_FOLDER

pytestmark = pytest.mark.skipif(WITHOUT_JIT, reason="hundreds of tokens take too long as plain Python")
#: With the dtypes of the cache: relative to the reference, whose keys are rounded before they are turned.
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "int8": 2e-1}


@pytest.mark.parametrize("chunk", [1, 7, 16])
@pytest.mark.parametrize("name", ["mistral-window", "qwen2-mixed-window", "gemma2"])
def test_a_sliding_ring_equals_the_full_history_under_the_window_mask(name: str, chunk: int) -> None:
    runner = load_cpu(GOLDEN_FOLDER / name, threads=1)
    ids = np.random.default_rng(3).integers(3, 90, 200).tolist()
    config = runner.program.config
    small = geometry(runner, 200, chunk)
    window = max(window for window in config.layer_windows if window)
    assert 200 / (window - 1 + chunk) > 5  # rings of window - 1 + chunk rows: at least five wraps
    assert any(small.ring_window(layer) for layer in range(config.num_hidden_layers))
    ringed, _ = prefill(runner, runner.new_cache(small, 1), SlotState(0), ids)
    whole = prefill(runner, runner.new_cache(geometry(runner, 200, 128), 1), SlotState(0), ids)[0]
    assert relative_error(ringed, whole) < 1e-4  # other tiles of tokens sum in another order
    # golden weights are float32 in these files and float16 once packed: 1e-2 as in test_model
    assert relative_error(ringed, logits_of(load(GOLDEN_FOLDER / name), ids, chunk=200)) < 1e-2
    runner.close()


@pytest.mark.parametrize("dtype", BOUNDS)
def test_token_by_token_through_five_wraps_of_the_references_own_ring(dtype: str) -> None:
    folder, context = GOLDEN_FOLDER / "tinyllama", 64
    pair = [load_cpu(folder, threads=1), load(folder)]
    caches = [runner.new_cache(geometry(runner, context, 8, dtype), 1) for runner in pair]
    state, rng = SlotState(0, sinks=4), np.random.default_rng(8)
    while state.end < 6 * context:
        count = int(rng.choice([1, 1, 1, 8]))
        if state.length + count > context:
            state = state.evict(16)
        ids = rng.integers(3, 90, count).tolist()
        found, expected = (prefill(runner, cache, state, ids)[0] for runner, cache in zip(pair, caches, strict=True))
        assert relative_error(found, expected) < BOUNDS[dtype]
        state = state.extended(count)
    assert state.evicted >= 5 * context - 16
    pair[0].close()

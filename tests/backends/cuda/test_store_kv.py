"""The rows that enter the cache, as the emulator runs the kernels' PTX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgellm.backends.slots import SlotState
from tests.backends.cuda.attending import DeviceCache, Layer, random_heads, records
from tests.backends.cuda.launching import launch


def store(layer: Layer, cache: DeviceCache, words: np.ndarray, k: np.ndarray, v: np.ndarray, **given: Any) -> None:
    arguments = {
        "k": k,
        "v": v,
        "weight": None,
        "record": words,
        "stride": layer.kv_heads * layer.head_dim,
        "step": 1,
        "norm": 0,
        "eps": 0.0,
        "offset": 0.0,
    }
    listed = layer.arguments() | layer.turns() | cache.arguments() | arguments | given
    for name in ("group", "window", "scale", "softcap"):
        del listed[name]
    launch(f"store_kv_{layer.dtype}", (-(-layer.kv_heads // 4), len(k)), listed)


def assert_same(found: DeviceCache, wanted: DeviceCache) -> None:
    """Equal but for the rounding of a key's angle: by a unit in the last place, by one code."""
    for name in ("keys", "values"):
        a, b = getattr(found, name), getattr(wanted, name)
        if found.layer.dtype == "int8":
            assert np.abs(a.astype(int) - b).max() <= 1
            assert (a == b).mean() > 0.98
        else:
            a, b = a.view(np.float16).astype(np.float32), b.view(np.float16).astype(np.float32)
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
            assert (a == b)[~np.isnan(a)].mean() > 0.98
    if found.key_scales is not None:
        np.testing.assert_allclose(found.key_scales, wanted.key_scales, rtol=1e-5)
        np.testing.assert_array_equal(found.value_scales, wanted.value_scales)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_chunk_of_a_slot_whose_ring_wraps(dtype: str) -> None:
    layer, rng = Layer(5, 5, 44, dtype, context=32), np.random.default_rng(1)
    found, wanted = DeviceCache(layer, 2), DeviceCache(layer, 2)
    state = SlotState(1, sinks=3, evicted=60, end=87)
    k, v = (random_heads(rng, 6, 5, layer) for _ in range(2))
    store(layer, found, records([state], [5]), k, v, step=0)
    wanted.write(state, k[:5], v[:5])
    assert_same(found, wanted)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_sequences_of_a_step_in_a_window_s_ring(dtype: str) -> None:
    layer, rng = Layer(1, 1, 24, dtype, window=5, chunk=4, rotary_dim=8), np.random.default_rng(2)
    found, wanted = DeviceCache(layer, 3), DeviceCache(layer, 3)
    states = [SlotState(2, end=19), None, SlotState(0, sinks=4, end=2)]
    k, v = (random_heads(rng, 3, 1, layer) for _ in range(2))
    store(layer, found, records(states), k, v)
    for index in (0, 2):
        wanted.write(states[index], k[index : index + 1], v[index : index + 1])
    assert_same(found, wanted)


def test_a_head_that_is_not_finite_or_zero_says_so_in_its_scale() -> None:
    layer = Layer(3, 3, 16, "int8")
    cache = DeviceCache(layer, 1)
    v = np.zeros((1, 3, 16), np.float32)
    v[0, 0, 2], v[0, 1, 3] = np.nan, np.inf
    store(layer, cache, records([SlotState(0)]), np.ones_like(v), v)
    assert not np.isfinite(cache.value_scales[0, :2, 0]).any()
    assert cache.value_scales[0, 2, 0] == 0
    assert not cache.values[0, 2, 0].any()

"""Decode attention against the reference, over what the cache holds, as the emulator runs its PTX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgellm.backends.cuda.kernels.partials import EMPTY, LARGEST, STATS, TOTAL, decode_kernel, decode_splits
from edgellm.backends.reference import ops
from edgellm.backends.slots import SlotState
from tests.backends.cuda.attending import DeviceCache, Layer, live, random_heads, records
from tests.backends.cuda.launching import launch
from tests.backends.cuda.weights import nmse

BOUND = 1e-11
_EVICTED = [("sinks", 5), ("see", 60), ("evict", 30), ("see", 20), ("evict", 10), ("see", 7)]
_FULL = [("see", 63)]

CASES = {
    "tiny heads": (Layer(2, 2, 8), [[], [("see", 1)], _FULL]),
    "three heads share, partly turned": (Layer(6, 2, 48, rotary_dim=24), [[("see", 7)], _EVICTED]),
    "a window's ring, wrapped": (Layer(4, 4, 20, window=9, context=40), [[("see", 57)], [("see", 3)]]),
    "a window's ring, sinks evicted": (Layer(4, 1, 64, window=50, context=64), [_EVICTED, [("sinks", 3), ("see", 9)]]),
    "a window as long as the context": (Layer(2, 1, 16, window=30, context=32), [[("sinks", 4), ("see", 31)]]),
    "eight heads share, int8, softcap": (Layer(8, 1, 128, "int8", softcap=3.0), [_EVICTED, _FULL]),
    "three tiles of heads": (Layer(10, 1, 72), [_EVICTED]),
    "wide heads, int8": (Layer(2, 1, 250, "int8"), [_EVICTED]),
    "no positions": (Layer(2, 2, 32, rotary_dim=0), [_EVICTED]),
}


def decode(
    layer: Layer, cache: DeviceCache, states: list[SlotState | None], q: np.ndarray, splits: int = 2, **given: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(out, sums, stats) of one launch; NaN where nothing was written."""
    name, tiles = decode_kernel(layer.dtype, layer.head_dim, layer.group)
    rows = len(q)
    out = np.full((rows, layer.heads * layer.head_dim), np.nan, np.float32)
    sums = np.full((rows, layer.heads, splits, layer.head_dim), np.nan, np.float32)
    stats = np.full((rows, layer.heads, splits, STATS), np.nan, np.float32)
    counters = np.zeros(rows * layer.kv_heads * tiles, np.uint32)
    arguments = {
        "q": q,
        "numbered": None,
        "k": None,
        "v": None,
        "q_weight": None,
        "k_weight": None,
        "record": records(states),
        "sums": sums,
        "stats": stats,
        "counters": counters,
        "out": out,
        "q_stride": layer.heads * layer.head_dim,
        "kv_stride": layer.kv_heads * layer.head_dim,
        "out_stride": layer.heads * layer.head_dim,
        "splits": splits,
        "step": 1,
        "fused": 1,
        "norm": 0,
        "combine": 1,
        "eps": 0.0,
        "offset": 0.0,
    }
    arguments |= layer.arguments() | layer.turns() | cache.arguments()
    launch(name, (splits, layer.kv_heads * tiles, rows), arguments | given)
    assert not counters.any()
    return out, sums, stats


@pytest.mark.parametrize("name", CASES)
def test_a_fused_step_attends_and_stores_what_the_reference_does(name: str) -> None:
    layer, lives = CASES[name]
    rng = np.random.default_rng(1)
    cache = DeviceCache(layer, len(lives))
    states = [live(cache, slot, life, rng) for slot, life in enumerate(lives)]
    q = random_heads(rng, len(lives), layer.heads, layer)
    k, v = (random_heads(rng, len(lives), layer.kv_heads, layer) for _ in range(2))
    out, _, _ = decode(layer, cache, states, q, k=k, v=v)
    stored = DeviceCache(layer, len(lives))
    for index, state in enumerate(states):
        assert nmse(out[index], cache.attended(state, q[index : index + 1])[0]) < BOUND
        stored.write(state, k[index : index + 1], v[index : index + 1])
        number = np.array([state.end])
        bound = 1e-3 if layer.dtype == "float16" else 2e-2
        for found, wanted in zip(cache.read(0, state, number), stored.read(0, state, number), strict=True):
            np.testing.assert_allclose(found, wanted, atol=bound * np.abs(wanted).max())
        rows = layer.geometry.row_of(0, state, number)
        assert not cache.keys[state.slot][:, rows, layer.head_dim :].any()


@pytest.mark.parametrize("norm", [False, True])
def test_heads_are_normalised_first_where_that_is_asked(norm: bool) -> None:
    layer, rng = Layer(4, 2, 24), np.random.default_rng(2)
    cache = DeviceCache(layer, 1)
    state = live(cache, 0, _EVICTED, rng)
    q, k, v = (random_heads(rng, 1, heads, layer) for heads in (4, 2, 2))
    weights = [rng.standard_normal(24).astype(np.float32) for _ in range(2)]
    given = {"norm": int(norm), "q_weight": weights[0], "k_weight": weights[1], "eps": 1e-3, "offset": 1.0}
    out, _, _ = decode(layer, cache, [state], q, k=k, v=v, **given)
    if norm:
        q, k = _normed(q, weights[0]), _normed(k, weights[1])
    assert nmse(out, cache.attended(state, q)) < BOUND
    stored = DeviceCache(layer, 1)
    stored.write(state, k, v)
    number = np.array([state.end])
    np.testing.assert_allclose(cache.read(0, state, number)[0], stored.read(0, state, number)[0], atol=4e-3)


def _normed(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.stack([ops.rms_norm(heads, weight, 1e-3, 1.0) for heads in x])


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rows_of_a_prefill_step_attend_without_a_tensor_core(dtype: str) -> None:
    layer, rng = Layer(3, 1, 40, dtype, window=30, context=64), np.random.default_rng(3)
    cache = DeviceCache(layer, 2)
    state = live(cache, 1, _EVICTED, rng)
    tokens = 5
    q = random_heads(rng, tokens, 3, layer)
    cache.write(state, *(random_heads(rng, tokens, 1, layer) for _ in range(2)))
    numbers = np.arange(state.end, state.end + tokens)
    positioned, numbered = layer.turned(q, numbers - state.evicted), layer.turned(q, numbers)
    padded = np.concatenate([positioned, np.zeros_like(positioned[:1])])
    given = {"record": records([state], [tokens]), "numbered": numbered, "step": 0, "fused": 0}
    out, _, _ = decode(layer, cache, [state], padded, **given)
    assert nmse(out[:tokens], cache.attended(state, q)) < BOUND
    assert np.isnan(out[tokens:]).all()


def test_partial_results_put_together_are_the_output_and_empty_splits_say_so() -> None:
    layer, rng = Layer(6, 2, 16, context=200), np.random.default_rng(4)
    cache = DeviceCache(layer, 2)
    states = [live(cache, 0, [("see", 150)], rng), live(cache, 1, [("see", 10)], rng)]
    q, k, v = (random_heads(rng, 2, heads, layer) for heads in (6, 2, 2))
    out, sums, stats = decode(layer, cache, states, q, splits=4, k=k, v=v, combine=0)
    assert np.isnan(out).all()
    whole, _, _ = decode(layer, cache, states, q, splits=4, k=k, v=v)
    for row, full in enumerate((3, 1)):
        found = stats[row]
        assert (found[:, full:, LARGEST] == np.float32(EMPTY)).all()
        assert (found[:, full:, TOTAL] == 0).all()
        weights = np.exp2(found[:, :full, LARGEST] - found[:, :full, LARGEST].max(axis=1, keepdims=True))
        value = (weights[..., None] * sums[row, :, :full]).sum(axis=1)
        value /= (weights * found[:, :full, TOTAL]).sum(axis=1)[:, None]
        assert nmse(value.ravel(), whole[row]) < 1e-12
        assert nmse(whole[row], cache.attended(states[row], q[row : row + 1])[0]) < BOUND


def test_a_record_of_nobody_is_left_alone_and_batch_mates_change_nothing() -> None:
    layer, rng = Layer(2, 1, 16), np.random.default_rng(5)
    cache = DeviceCache(layer, 3)
    states = [live(cache, 0, _EVICTED, rng), None, live(cache, 2, [("see", 12)], rng)]
    q, k, v = (random_heads(rng, 3, heads, layer) for heads in (2, 1, 1))
    out, _, _ = decode(layer, cache, states, q, k=k, v=v)
    assert np.isnan(out[1]).all()
    assert (cache.keys[1] == 0x7E00).all()
    alone, _, _ = decode(layer, cache, [states[2]], q[2:], k=k[2:], v=v[2:])
    np.testing.assert_array_equal(out[2], alone[0])


def test_nan_in_a_key_reaches_its_heads_and_no_others() -> None:
    layer, rng = Layer(4, 2, 16, "int8"), np.random.default_rng(6)
    cache = DeviceCache(layer, 1)
    state = live(cache, 0, [("see", 5)], rng)
    q, k, v = (random_heads(rng, 1, heads, layer) for heads in (4, 2, 2))
    k[0, 1, 3] = np.nan
    out, _, _ = decode(layer, cache, [state], q, k=k, v=v)
    assert np.isfinite(out[0, :32]).all()
    assert np.isnan(out[0, 32:]).all()


def test_splits_fill_the_device_once_a_context_is_long() -> None:
    assert decode_splits(64, 8, 132) == 1
    assert decode_splits(4096, 8, 132) == 33
    assert decode_splits(4096, 32, 8) == 1
    assert decode_splits(1 << 20, 1, 132) == 64

"""Prefill attention against the reference, over what the cache holds, as the emulator runs its PTX."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.cuda.kernels.partials import PREFILL_ROWS, prefill_kernel
from edgellm.backends.slots import SlotState
from tests.backends.cuda.attending import DeviceCache, Layer, live, random_heads, records
from tests.backends.cuda.launching import launch
from tests.backends.cuda.weights import nmse

BOUND = 1e-6  # float16 queries and weights
_EVICTED = [("sinks", 5), ("see", 150), ("evict", 90), ("see", 70), ("evict", 30), ("see", 7)]

CASES = {
    "the first chunk": (Layer(4, 2, 64, context=80, chunk=40), [], 40),
    "one token": (Layer(4, 2, 64, context=80, chunk=40), [("see", 11)], 1),
    "three heads share, behind evicted turns": (Layer(3, 1, 40, context=170, chunk=40), _EVICTED, 37),
    "a window's ring, wrapped": (Layer(2, 2, 24, window=21, context=300, chunk=40), [("see", 230)], 40),
    "a window, sinks evicted, softcap": (Layer(2, 1, 64, window=100, context=170, chunk=40, softcap=5.0), _EVICTED, 33),
    "int8, partly turned": (Layer(2, 1, 112, "int8", context=170, chunk=40, rotary_dim=64), _EVICTED, 34),
    "wide heads": (Layer(2, 1, 200, context=170, chunk=40), _EVICTED, 40),
}


def prefill(layer: Layer, cache: DeviceCache, state: SlotState, q: np.ndarray, capability: int = 80) -> np.ndarray:
    """The output of one launch, with two rows beyond the record's tokens; NaN where nothing was written."""
    kernel = prefill_kernel(layer.dtype, layer.head_dim, layer.group, capability)
    numbers = np.arange(state.end, state.end + len(q))
    width = layer.heads * layer.head_dim
    out = np.full((len(q) + 2, width), np.nan, np.float32)
    arguments = {
        "q": layer.turned(q, numbers - state.evicted),
        "numbered": layer.turned(q, numbers) if state.evicted else None,
        "record": records([state], [len(q)]),
        "out": out,
        "q_stride": width,
        "out_stride": width,
    }
    arguments |= layer.arguments() | cache.arguments()
    grid = (-(-len(out) // kernel.tokens), layer.kv_heads * kernel.parts)
    launch(kernel.name, grid, arguments, capability)
    return out


@pytest.mark.parametrize("name", CASES)
def test_a_chunk_attends_as_in_the_reference(name: str) -> None:
    layer, life, tokens = CASES[name]
    check(layer, life, tokens, 80)


@pytest.mark.parametrize("name", ["three heads share, behind evicted turns", "int8, partly turned", "wide heads"])
def test_turing_attends_as_in_the_reference(name: str) -> None:
    layer, life, tokens = CASES[name]
    check(layer, life, tokens, 75)


def check(layer: Layer, life: list[tuple[str, int]], tokens: int, capability: int) -> None:
    rng = np.random.default_rng(7)
    cache = DeviceCache(layer, 2)
    state = live(cache, 1, life, rng)
    q = random_heads(rng, tokens, layer.heads, layer)
    cache.write(state, *(random_heads(rng, tokens, layer.kv_heads, layer) for _ in range(2)))
    out = prefill(layer, cache, state, q, capability)
    assert nmse(out[:tokens], cache.attended(state, q)) < BOUND
    assert np.isnan(out[tokens:]).all()


@pytest.mark.parametrize("size", [1e-20, 1e12])
def test_queries_of_any_size_fit_float16(size: float) -> None:
    layer, rng = Layer(1, 1, 64, context=80, chunk=40, scale=0.1 / size), np.random.default_rng(8)
    cache = DeviceCache(layer, 1)
    state = live(cache, 0, [("see", 20)], rng)
    q = random_heads(rng, 9, 1, layer) * np.float32(size)
    cache.write(state, *(random_heads(rng, 9, 1, layer) for _ in range(2)))
    assert nmse(prefill(layer, cache, state, q)[:9], cache.attended(state, q)) < BOUND


def test_a_token_does_not_depend_on_its_chunk() -> None:
    layer, rng = Layer(2, 2, 64, context=80, chunk=40), np.random.default_rng(9)
    cache = DeviceCache(layer, 1)
    state = live(cache, 0, [("see", 20)], rng)
    q = random_heads(rng, 40, 2, layer)
    cache.write(state, *(random_heads(rng, 40, 2, layer) for _ in range(2)))
    whole = prefill(layer, cache, state, q)
    part = prefill(layer, cache, state, q[:13])
    np.testing.assert_array_equal(whole[:13], part[:13])


def test_every_shape_has_a_kernel_or_none() -> None:
    assert prefill_kernel("float16", 128, 4, 70) is None
    assert prefill_kernel("float16", 128, PREFILL_ROWS + 1, 90) is None
    assert prefill_kernel("int8", 80, 7, 75).name == "attention_prefill_int8_d128_k8"
    assert prefill_kernel("float16", 256, 2, 121).parts == 2
    assert prefill_kernel("float16", 64, 7, 87).tokens == 9

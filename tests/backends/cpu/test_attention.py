"""Attention over the ring cache: against the reference on float32, against float64 over what is stored on every dtype,
for any number of threads; contexts that wrap and evict, windows, prompts, several sequences at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgellm.backends.cpu.attention_words import WORDS
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.model.rope import Rope
from tests.backends.cpu.attending import Layers
from tests.backends.cpu.kernels import THREADS, WITHOUT_JIT, cases, nmse

DTYPES = ("int8",) if WITHOUT_JIT else ("float32", "float16", "int8")
ROPE = Rope(10000.0, 8)


def bound(dtype: str) -> float:
    """Of the nmse against float64: float32 arithmetic, or words, whose error stays below that of storing float16."""
    return 1e-7 if WORDS and dtype != "float32" else 1e-11


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    cases(
        *((2, 1, 8), (3, 3, 20), (5, 1, 72), (16, 2, 16), (4, 2, 64), (8, 1, 80), (2, 2, 128), (7, 1, 96), (72, 1, 8)),
        small=3,
    ),
)
def test_prompts_and_single_tokens_of_any_shape(dtype: str, heads: int, kv_heads: int, head_dim: int) -> None:
    geometry = CacheGeometry(200, (None, 11), kv_heads, head_dim, 96, dtype)
    layers = Layers(geometry, heads, rope=ROPE, seed=head_dim)
    state = SlotState(0, sinks=2)
    for count in cases(1, 3, 70, 9, 1, 96, 1, small=4) if head_dim < 20 else cases(5, 1, 77, 1, small=2):
        drawn = layers.draw(count)
        found = layers.run([(state, count)], drawn)
        for layer in (0, 1):
            assert nmse(found[layer], layers.run_exactly(state, count, drawn[0], layer)) < bound(dtype)
        reference = layers.run_reference([(state, count)], drawn)
        assert nmse(found, reference) < {"float32": 1e-11, "float16": 1e-5, "int8": 2e-3}[dtype]
        state = state.extended(count)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_ring_that_wraps_and_evicts_many_times(dtype: str) -> None:
    context, sinks, times = (40, 3, 2) if WITHOUT_JIT else (150, 5, 6)
    geometry = CacheGeometry(context, (None, 7, 60), 1 if WITHOUT_JIT else 2, 16, 16, dtype)
    layers = Layers(geometry, 4, rope=replace(ROPE, rope_type="linear", factor=2.0))
    state, rng = SlotState(0, sinks=sinks), np.random.default_rng(1)
    worst = 0.0
    while state.end < times * context:
        count = int(rng.choice([1, 1, 1, 2, 5, 9, 16]))
        if state.length + count > context:
            state = state.evict(count + int(rng.integers(0, context // 3)))
        drawn = layers.draw(count)
        found = layers.run([(state, count)], drawn)
        for layer in range(3):
            worst = max(worst, nmse(found[layer], layers.run_exactly(state, count, drawn[0], layer)))
        if dtype == "float32":
            worst = max(worst, nmse(found, layers.run_reference([(state, count)], drawn)))
        state = state.extended(count)
    assert state.evicted > (times - 2) * context
    assert worst < max(1e-10, bound(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_long_sequence_cut_into_spans_is_the_same_for_any_number_of_threads(dtype: str) -> None:
    context = 300 if WITHOUT_JIT else 1000
    geometry = CacheGeometry(context, (None, 500), 2, 24, 8, dtype)
    state = SlotState(0, sinks=4, evicted=context // 2, end=context + context // 2 - 10)
    found = []
    for nth in cases(*THREADS, small=2):
        layers = Layers(geometry, 4, rope=ROPE)
        _fill(layers)
        after = state
        for count in (1, 3):
            drawn = layers.draw(count)
            found.append((count, layers.run([(after, count)], drawn, nth)))
            for layer in (0, 1):
                assert nmse(found[-1][1][layer], layers.run_exactly(after, count, drawn[0], layer)) < 1e-11
            after = after.extended(count)
    for count, output in found[2:]:
        assert (output == next(other for n, other in found if n == count)).all()


def _fill(layers: Layers) -> None:
    """Put something finite into every row, as a long conversation would have."""
    rng = np.random.default_rng(9)
    state = SlotState(0, end=layers.geometry.context)
    tensors = {}
    for name, array in layers.cache.export_slot(state).items():
        if array.dtype == np.int8:
            tensors[name] = rng.integers(-127, 128, array.shape).astype(np.int8)
        else:
            tensors[name] = (rng.random(array.shape) * (0.02 if "scales" in name else 1)).astype(array.dtype)
    layers.cache.import_slot(state, tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sequences_side_by_side_are_what_they_are_alone(dtype: str) -> None:
    geometry = CacheGeometry(400, (None, 30), 2, 16, 96, dtype)
    prompt = 12 if WITHOUT_JIT else 80
    parts = [(SlotState(2), prompt), (SlotState(0, end=300), 1), (SlotState(1, sinks=2, evicted=9, end=60), 4)]
    together = Layers(geometry, 6, 3, ROPE)
    drawn = together.draw(prompt + 5)
    outputs = [together.run(parts, drawn, nth) for nth in cases(*THREADS, small=1)]
    assert all((output == outputs[0]).all() for output in outputs)
    first = 0
    alone = Layers(geometry, 6, 3, ROPE)
    for state, count in parts:
        span = slice(first, first + count)
        output = alone.run([(state, count)], tuple(x[:, span] for x in drawn))
        assert (output == outputs[0][:, span]).all()
        first += count


@pytest.mark.parametrize("window", [None, 40])
def test_a_prompt_in_chunks_is_the_prompt_at_once(window: int | None) -> None:
    size = 60 if WITHOUT_JIT else 200
    geometry = CacheGeometry(256, (window,), 1, 32, 200, "float16")
    layers = Layers(geometry, 4, rope=ROPE, softcap=5.0)
    drawn = layers.draw(size)
    whole = layers.run([(SlotState(0), size)], drawn)
    assert nmse(whole[0], layers.run_exactly(SlotState(0), size, drawn[0], 0)) < bound("float16")
    parts, state = [], SlotState(0)
    for begin in range(0, size, 25):
        chunk = tuple(x[:, begin : begin + 25] for x in drawn)
        parts.append(layers.run([(state, chunk[0].shape[1])], chunk, 3))
        state = state.extended(chunk[0].shape[1])
    assert nmse(np.concatenate(parts, axis=1), whole) < bound("float16")


@pytest.mark.parametrize("outlier", [0.0, 20.0], ids=["even", "outlier"])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 3.0, 30.0])
def test_many_queries_lose_less_than_storing_float16_does(scale: float, outlier: float) -> None:
    """Scores from all alike to one that takes all; keys with elements far larger than the others, as models have."""
    size = 40 if WITHOUT_JIT else 150
    layers, unrounded = (
        Layers(CacheGeometry(2 * size, (None,), 1, 64, size, dtype), 7, rope=ROPE) for dtype in ("float16", "float32")
    )
    state = SlotState(0)
    for _ in range(2):
        q, k, v = layers.draw(size)
        k[..., [5, 40]] += [outlier, -0.4 * outlier]
        drawn = (q, k * np.float32(scale), v)
        found = layers.run([(state, size)], drawn)
        exact = layers.run_exactly(state, size, q, 0)
        stored = nmse(exact, unrounded.run_reference([(state, size)], drawn)[0])
        assert nmse(found[0], exact) < stored
        state = state.extended(size)


def test_without_rotation() -> None:
    geometry = CacheGeometry(64, (None,), 2, 16, 8, "float32")
    layers = Layers(geometry, 2, rope=None)
    state = SlotState(0, sinks=1)
    for count in (3, 1):
        drawn = layers.draw(count)
        assert nmse(layers.run([(state, count)], drawn), layers.run_reference([(state, count)], drawn)) < 1e-11
        state = state.extended(count)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_its_own_sequence_and_no_other(dtype: str, bad: float) -> None:
    layers = Layers(CacheGeometry(64, (None,), 1, 16, 8, dtype), 2, 2, ROPE)
    drawn = layers.draw(4)
    for which in (1, 2):
        broken = tuple(x.copy() for x in drawn)
        broken[which][0, 1, 0, 3] = bad
        output = layers.run([(SlotState(0), 2), (SlotState(1), 2)], broken)[0]
        assert not np.isfinite(output[1]).all()
        assert np.isfinite(output[2:]).all()
        # what the rows held does not come back when others take them
        again = layers.run([(SlotState(0), 2), (SlotState(1), 2)], drawn)
        assert np.isfinite(again).all()

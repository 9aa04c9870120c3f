"""The choice of bits against trying every combination."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.convert import mixed
from edgellm.convert.mixed import Option, allocate, measure_options, quantized_nbytes
from edgellm.convert.scheme import Scheme
from edgellm.errors import NumericalError, UsageError
from edgellm.formats import gptq
from edgellm.formats.quantized import QuantizedTensor

SCHEMES = [Scheme(bits, 32) for bits in (2, 3, 4, 8)]


def brute_force(items: list[list[tuple[int, float]]], budget: int) -> float:
    """The least loss of all combinations within the budget."""
    fits = (c for c in itertools.product(*items) if sum(size for size, _ in c) <= budget)
    return min((sum(loss for _, loss in c) for c in fits), default=math.inf)


choices = st.lists(st.tuples(st.integers(1, 30), st.floats(0, 10)), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(choices, min_size=1, max_size=5), st.integers(0, 120))
def test_as_good_as_trying_everything(items: list[list[tuple[int, float]]], spare: int) -> None:
    options = {
        f"l{i}": [Option(SCHEMES[k], size, loss) for k, (size, loss) in enumerate(item)] for i, item in enumerate(items)
    }
    budget = sum(min(size for size, _ in item) for item in items) + spare
    found = allocate(options, dict.fromkeys(options, 8), budget / len(options))  # bits a weight = bytes a linear
    assert found.proven
    assert found.nbytes <= budget
    assert found.loss == pytest.approx(brute_force(items, budget))


def test_a_tie_chooses_together() -> None:
    losses = {"q": (9, 1), "k": (1, 0.9), "o": (5, 0)}
    options = {
        name: [Option(Scheme(2), 10, a), Option(Scheme(4), 20, b)] for name, (a, b) in losses.items()
    }  # fmt: skip
    sizes = dict.fromkeys(options, 40)
    free = allocate(options, sizes, 50 * 8 / 120)
    assert [free.chosen[name].scheme.bits for name in "qko"] == [4, 2, 4]
    tied = allocate(options, sizes, 50 * 8 / 120, tied=[("q", "k")])
    assert [tied.chosen[name].scheme.bits for name in "qko"] == [4, 4, 2]
    assert tied.average_bits == pytest.approx(8 * 50 / 120)


def test_a_model_of_many_layers_stays_quick_and_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    shapes = [(2048, 2048), (512, 2048), (512, 2048), (2048, 2048), (8192, 2048), (8192, 2048), (2048, 8192)]
    options, sizes = {}, {}
    for layer, (part, shape) in itertools.product(range(28), enumerate(shapes)):
        loss = rng.lognormal() * np.array([0.3, 0.06, 0.013, 0.0001])
        name = f"{layer}.{part}"
        options[name] = [Option(s, quantized_nbytes(shape, s), float(x)) for s, x in zip(SCHEMES, loss, strict=True)]
        sizes[name] = shape[0] * shape[1]
    found = allocate(options, sizes, 4.0)
    assert 3.9 < found.average_bits <= 4.0
    three = {name: option[1] for name, option in options.items()}
    assert found.loss < 0.5 * sum(option.loss for option in three.values())


def test_thinning_keeps_to_the_budget_and_near_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    items = [[(int(a), float(1 / a)) for a in rng.integers(1, 10_000, 4)] for _ in range(9)]
    budget = sum(min(size for size, _ in item) for item in items) + 9000
    options = {
        f"l{i}": [Option(SCHEMES[k], *choice) for k, choice in enumerate(item)] for i, item in enumerate(items)
    }  # fmt: skip
    best = allocate(options, dict.fromkeys(options, 8), budget / 9)
    monkeypatch.setattr(mixed, "_MAX_STATES", 64)
    rough = allocate(options, dict.fromkeys(options, 8), budget / 9)
    assert best.proven
    assert not rough.proven
    assert rough.nbytes <= budget
    assert best.loss <= rough.loss < 1.2 * best.loss


@pytest.mark.parametrize("scheme", [*SCHEMES, Scheme(4, -1), Scheme(4, 32, desc_act=True)], ids=str)
def test_bytes_are_those_of_the_file(scheme: Scheme) -> None:
    shape = (64, 128)
    width = scheme.group_width(128)
    permutation = np.arange(128, dtype=np.int32)[::-1].copy() if scheme.desc_act else None
    tensor = QuantizedTensor(
        np.zeros(shape, np.uint8),
        np.ones((64, 128 // width), np.float16),
        np.ones((64, 128 // width), np.int16),
        scheme.bits,
        width,
        permutation,
    )
    packed = gptq.pack(tensor)
    kept = [array.nbytes for name, array in packed.items() if name != "g_idx" or scheme.desc_act]
    assert quantized_nbytes(shape, scheme) == sum(kept)


def test_measured_losses_fall_with_bits() -> None:
    rng = np.random.default_rng(2)
    weight, x = rng.standard_normal((32, 64)).astype(np.float32), rng.standard_normal((200, 64))
    options = measure_options(weight, x.T @ x, SCHEMES)
    losses = [option.loss for option in options]
    assert losses == sorted(losses, reverse=True)
    assert 0 < losses[-1] < 1e-3 < losses[0] < 1


def test_what_cannot_be_is_refused() -> None:
    options = {"a": [Option(Scheme(4), 100, 0.0)], "b": [Option(Scheme(3), 50, 0.0)]}
    sizes = {"a": 100, "b": 100}
    with pytest.raises(UsageError, match=r"average_bits.*allowed: at least 6"):
        allocate(options, sizes, 5.9)
    with pytest.raises(UsageError, match="average_bits"):
        allocate(options, sizes, math.nan)
    with pytest.raises(UsageError, match="b: tied linears"):
        allocate(options, sizes, 8, tied=[("a", "b")])
    with pytest.raises(NumericalError, match="loss"):
        allocate({"a": [Option(Scheme(4), 1, math.nan)]}, sizes, 8)

"""What is compiled with a kernel, and how long that will take."""

from __future__ import annotations

import pytest

from edgellm.backends.cpu import jit_progress, walker
from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.jit_calls import kernels_within
from tests.backends.cpu.kernels import WITHOUT_JIT

pytestmark = pytest.mark.skipif(WITHOUT_JIT, reason="nothing is compiled")


@kernel
def leaf(x):
    return x + 1


@kernel(inline="always")
def inlined(x):
    return leaf(x)


def make(inner):
    @kernel
    def twice(x):
        return inner(inlined(x)) + inner(x)

    return twice


def test_each_kernel_that_is_called_stands_there_once() -> None:
    lower = make(leaf)
    upper = make(lower)
    assert kernels_within(leaf) == [leaf]
    assert set(kernels_within(upper)) == {upper, lower, leaf}
    assert kernels_within(upper, [lower]) == [upper, leaf]


def test_the_walker_calls_the_ops_that_a_helper_compiles() -> None:
    whole, apart = kernels_within(walker.walk), [getattr(walker, name) for name in walker.APART]
    assert set(apart) < set(whole)
    assert len(kernels_within(walker.walk, apart)) < len(whole) - len(apart)


def test_seconds_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(jit_progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(jit_progress, "_statistics", jit_progress.Statistics(compiled=3))
    assert jit_progress.seconds_left() is None
    with jit_progress.announced("whole"):
        jit_progress.expect(20)
        now[0] += 5.0
        jit_progress._statistics.compiled += 4
        assert jit_progress.seconds_left() is None  # from so few nothing follows
        now[0] += 5.0
        jit_progress._statistics.compiled += 6
        assert jit_progress.seconds_left() == pytest.approx(10.0)
        jit_progress._statistics.compiled += 11
        assert jit_progress.seconds_left() is None  # more than was expected
        jit_progress._statistics.compiled -= 10
    assert jit_progress.seconds_left() is None

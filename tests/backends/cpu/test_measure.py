"""The machine's limits, and a step's time by row: that figures are whole, not what they are."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgellm.backends.cpu import clock, measure
from edgellm.backends.cpu.measure import SUMS, Yardstick
from edgellm.backends.interface import Batch
from edgellm.backends.slots import SlotState
from edgellm.errors import BackendUnavailable, OutOfMemoryError
from edgellm.simd import F32_LANES
from tests.backends.cpu.kernels import WITHOUT_JIT
from tests.backends.running import geometry


def test_limits_of_a_team(monkeypatch) -> None:
    monkeypatch.setattr(measure, "_DOTS_A_TURN", 3 * SUMS)
    with Yardstick(2, 1 << 16) as yardstick:
        assert yardstick.read_bandwidth(0.0) > 0
        best, sustained = yardstick.read_bandwidths(0.0)
        assert best >= sustained > 0
        assert yardstick.integer_peak(0.0) > 0
        np.testing.assert_array_equal(yardstick._out, 3 * 4)  # of 1 times 1, four to a lane


@pytest.mark.skipif(WITHOUT_JIT, reason="there is nothing to load from the cache")
def test_kernels_of_the_cache_run_in_a_process_that_compiles_nothing() -> None:
    """Kernels that count references to slices, the only part of numba's runtime that compiled code needs."""
    code = "from edgellm.backends.cpu.measure import Yardstick\nwith Yardstick(2, 1 << 16) as y: y.read_bandwidth(0.0)"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_float_products_are_computed() -> None:
    out = np.zeros(SUMS * F32_LANES, np.float32)
    measure.multiply_floats(out, 2, np.float32(0.5))
    np.testing.assert_array_equal(out, 0.75)


def test_no_memory_to_read(monkeypatch) -> None:
    with pytest.raises(OutOfMemoryError):
        Yardstick(1, 1 << 62)


def test_a_profile_has_every_row_with_its_time_and_bytes(runner) -> None:
    cache = runner.new_cache(geometry(runner, 64, 16), 2)
    states = (SlotState(0), SlotState(1))
    first = Batch.of([(states[0], [5, 6, 7], "last"), (states[1], list(range(3, 15)), "none")])
    expected = runner.run(cache, first)
    rows = runner.profile(cache, first)
    np.testing.assert_array_equal(runner.run(cache, first), expected)
    assert [row.program_op for row in rows] == runner._lowered.table["program_op"].tolist()
    assert all(row.seconds >= 0 for row in rows)
    assert sum(row.seconds for row in rows) > 0
    assert rows[0].kind == "call+embed"
    weights = sum(row.nbytes for row in rows if row.kind.startswith(("linear", "logits")))
    assert weights == runner.describe()["work"]["weight_bytes"]
    window = min(w for w in cache.geometry.windows if w is not None)
    token_bytes = {row.nbytes for row in rows if row.kind == "attend"}
    whole = max(token_bytes) // (3 + 12)
    assert token_bytes == {whole * (3 + 12), whole * (3 + min(12, window - 1 + 12))}


def test_logits_that_nobody_wants_read_nothing(runner) -> None:
    cache = runner.new_cache(geometry(runner, 64, 16), 1)
    rows = runner.profile(cache, Batch.of([(SlotState(0), [5, 6], "none")]))
    assert [row.nbytes for row in rows if row.kind.startswith("logits")] == [0]


def test_no_clock_no_profile(runner, monkeypatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: 0)
    cache = runner.new_cache(geometry(runner, 8, 8), 1)
    with pytest.raises(BackendUnavailable, match="no clock"):
        runner.profile(cache, Batch.of([(SlotState(0), [5], "last")]))

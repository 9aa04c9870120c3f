"""Where tokens lie and what a sequence remembers: `backends/slots.py`, against lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.backends.slots import CacheGeometry, SlotState

OPERATIONS = st.lists(st.tuples(st.sampled_from(["add", "evict", "rewind"]), st.integers(1, 9)), max_size=40)


@settings(max_examples=150, deadline=None)
@given(OPERATIONS, st.integers(0, 5), st.integers(12, 20), st.sampled_from([None, 3, 6]))
def test_rows_hold_what_the_state_says(operations, sinks: int, context: int, window: int | None) -> None:
    chunk = 4
    geometry = CacheGeometry(context, (None, window), 1, 2, chunk)
    state = SlotState(0, sinks=sinks)
    kept: list[int] = []  # token numbers, the model of the state
    stored: list[dict[int, int]] = [{}, {}]  # row -> token number
    for operation, count in operations:
        if operation == "add":
            count = min(count, chunk, context - state.length)
            new = np.arange(state.end, state.end + count)
            for layer in range(2):
                for number, row in zip(new, geometry.row_of(layer, state, new), strict=True):
                    assert geometry.row(layer, state, int(number)) == row
                    stored[layer][int(row)] = int(number)
            state = state.extended(count)
            kept += new.tolist()
        elif operation == "evict" and len(kept) > sinks:
            count = min(count, len(kept) - sinks)
            state = state.evict(count)
            del kept[sinks : sinks + count]
        elif operation == "rewind" and geometry.can_rewind(state, max(state.length - count, state.kept_prefix)):
            length = max(state.length - count, state.kept_prefix)
            state = state.rewound(length)
            del kept[length:]
        assert state.numbers().tolist() == kept
        assert state.positions(state.numbers()).tolist() == list(range(len(kept)))
        assert geometry.room(state) == context - len(kept)
        for layer in range(2):
            ring = geometry.ring_window(layer)
            needed = [n for n in kept if ring is None or n > state.end - ring]
            rows = geometry.row_of(layer, state, np.array(needed, np.int64))
            assert [stored[layer][int(row)] for row in rows] == needed
            assert all(0 <= row < geometry.rows(layer) for row in rows)


def test_rewinding_twice_does_not_bring_back_what_a_ring_overwrote() -> None:
    geometry = CacheGeometry(512, (32,), 1, 2, 16)  # 47 rows
    state = SlotState(0).extended(100)
    assert geometry.can_rewind(state, 84)
    assert not geometry.can_rewind(state, 83)
    state = state.rewound(84)
    assert not geometry.can_rewind(state, 83)
    assert geometry.oldest_held(0, state) == 53
    again = state.extended(10)
    assert geometry.can_rewind(again, 84)
    assert not geometry.can_rewind(again, 83)
    assert geometry.can_rewind(again.extended(40), 118)
    assert geometry.rings_whole(SlotState(0).extended(47))
    assert not geometry.rings_whole(SlotState(0).extended(48).rewound(40))


def test_geometry_of_sliding_layers() -> None:
    geometry = CacheGeometry(512, (None, 32, 600), 2, 8, 16, "float16")
    assert [geometry.rows(layer) for layer in range(3)] == [512, 47, 512]
    assert geometry.slot_nbytes == 2 * 2 * 8 * 2 * (512 + 47 + 512)
    assert not geometry.unbounded
    assert CacheGeometry(512, (32, 8), 2, 8, 16).unbounded
    assert CacheGeometry(512, (32, 8), 2, 8, 16).room(SlotState(0, end=10_000)) is None


def test_int8_counts_its_scales() -> None:
    assert CacheGeometry(10, (None,), 2, 8, 4, "int8").slot_nbytes == 2 * 2 * (8 + 4) * 10


def test_impossible_moves_are_refused() -> None:
    state = SlotState(0, sinks=2).extended(5)
    with pytest.raises(ValueError, match="cannot evict"):
        state.evict(4)
    with pytest.raises(ValueError, match="cannot keep"):
        state.evict(1).rewound(1)
    with pytest.raises(ValueError, match="cannot keep"):
        state.rewound(6)


def test_a_full_ring_forgets_its_gap_when_it_rewinds_to_the_sinks() -> None:
    state = SlotState(0, sinks=2).extended(8).evict(3)
    assert state.numbers().tolist() == [0, 1, 5, 6, 7]
    assert state.rewound(3).numbers().tolist() == [0, 1, 5]

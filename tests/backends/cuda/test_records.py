"""Batches taken apart into the steps that kernels know, and the records of a step."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.backends.cuda.kernels.record import COUNT, END, EVICTED, MAX_BATCH, RECORD_WORDS, SINKS, SLOT, TOKEN
from edgellm.backends.cuda.records import ids_in, is_decode, parts_of, records_in, write_decode_records, write_records
from edgellm.backends.interface import Batch
from edgellm.backends.slots import SlotState

WANTED = st.sampled_from(["all", "last", "none"])


@st.composite
def batches(draw):
    lengths = draw(st.lists(st.one_of(st.just(1), st.integers(1, 30)), min_size=1, max_size=20))
    return Batch.of(
        [
            (SlotState(slot, 2, draw(st.integers(0, 3)), draw(st.integers(5, 9))), list(range(n)), draw(WANTED))
            for slot, n in enumerate(lengths)
        ]
    )


@given(batches(), st.integers(2, 16))
@settings(max_examples=50, deadline=None)
def test_every_token_is_in_one_part_in_the_order_of_its_sequence(batch, most):
    parts = list(parts_of(batch, most))
    rows = np.concatenate([part.rows for part in parts])
    assert sorted(rows.tolist()) == list(range(len(batch.token_ids)))
    wanted = np.concatenate([part.rows[part.wanted] for part in parts])
    assert sorted(wanted.tolist()) == batch.logits_rows.tolist()
    ends = {state.slot: state.end for state in batch.states}
    for part in parts:
        assert len(part.rows) <= (MAX_BATCH if part.decode else most)
        assert part.decode == (len(part.states) == len(part.rows)) or len(part.rows) == 1
        for state in part.states:
            assert state.end == ends[state.slot]
            ends[state.slot] += 1 if part.decode else len(part.rows)


def test_a_record_of_each_sequence():
    batch = Batch.of([(SlotState(3, 4, 5, 20), [7], "last"), (SlotState(1, 0, 0, 2), [9], "last")])
    host = np.full(4 * (MAX_BATCH * RECORD_WORDS + 8), 255, np.uint8)
    records, (part,) = records_in(host), list(parts_of(batch, 8))
    write_records(records, part, batch.token_ids)
    fields = (TOKEN, SLOT, END, EVICTED, SINKS, COUNT)
    assert records[:3, fields].tolist() == [[7, 3, 20, 5, 4, 1], [9, 1, 2, 0, 0, 1], [0] * 6]
    assert ids_in(host).tolist() == [2**32 - 1] * 8


def test_the_short_way_writes_the_same():
    batch = Batch.of([(SlotState(3, 4, 5, 20), [7], "last"), (SlotState(1, 0, 0, 2), [9], "last")])
    assert is_decode(batch)
    assert not is_decode(Batch.of([(SlotState(0), [1, 2], "last")]))
    assert not is_decode(Batch.of([(SlotState(slot), [1], "last") for slot in range(MAX_BATCH + 1)]))
    hosts = [np.zeros(4 * (MAX_BATCH * RECORD_WORDS + 8), np.uint8) for _ in range(2)]
    write_decode_records(memoryview(hosts[0]), batch)
    (part,) = parts_of(batch, 8)
    write_records(records_in(hosts[1]), part, batch.token_ids)
    np.testing.assert_array_equal(*hosts)


def test_the_record_of_a_prompt_counts_its_tokens():
    (part,) = parts_of(Batch.of([(SlotState(0), [1, 2, 3], "none")]), 8)
    records = np.zeros((MAX_BATCH, RECORD_WORDS), np.uint32)
    write_records(records, part, np.array([1, 2, 3], np.int32))
    assert records[0, COUNT] == 3

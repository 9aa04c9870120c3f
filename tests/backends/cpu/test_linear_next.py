"""Where pieces begin, and where a thread reads next."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.cpu.layout import BAND, LinearKind, LinearLayout
from edgellm.backends.cpu.linear_columns import count_stretches, piece_begin
from edgellm.backends.cpu.linear_next import block_begin, blocks_of, next_begin
from edgellm.backends.cpu.optable import LOGITS, OP_DTYPE, TOKENS
from edgellm.backends.cpu.work import piece_of, pieces_before
from edgellm.simd import F32_LANES
from tests.backends.cpu.linears import put_layout

INTEGERS = (LinearKind.INT2, LinearKind.INT4, LinearKind.INT8)


def table_of(*layouts: LinearLayout, piece: int = 1) -> np.ndarray:
    """Records of linears one behind the other, their weights too."""
    table, offset = np.zeros(len(layouts), OP_DTYPE), 64
    for number, layout in enumerate(layouts):
        put_layout(table[number], layout)
        table[number]["weight"], table[number]["piece"], table[number]["over"] = offset, piece, TOKENS
        table[number]["next"] = number + 1 if number + 1 < len(layouts) else -1
        offset += layout.nbytes
    return table


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("inputs", [32, 1000, 2048, 2080, 4864])
@pytest.mark.parametrize("blocks", [1, BAND - 1, 2 * BAND + 3])
def test_pieces_begin_where_packing_puts_them(kind: LinearKind, inputs: int, blocks: int) -> None:
    layout = LinearLayout(kind, blocks * F32_LANES - 1, inputs, 32, kind == LinearKind.INT4)
    (op,) = table_of(layout)
    stretches, groups = count_stretches(op)
    assert groups == layout.groups
    found = {}
    for part in layout.parts():
        nbytes = layout.piece_bytes(part.groups)
        for block in range(part.first_block, part.last_block):
            found[block, part.first_group // layout.stretch] = 64 + part.offset + (block - part.first_block) * nbytes
    assert len(found) == blocks * stretches
    assert found == {key: piece_begin(op, stretches, key[1], key[0]) for key in found}


def test_dense_blocks_follow_each_other() -> None:
    layout = LinearLayout(LinearKind.F16, 20 * F32_LANES, 33, 1, False)
    (op,) = table_of(layout)
    assert [block_begin(op, block) for block in (0, 1, 19)] == [64 + n * layout.block_bytes for n in (0, 1, 19)]


@pytest.mark.parametrize("nth", [1, 2, 3, 7])
@pytest.mark.parametrize("least", [1, 5])
def test_pieces_before_a_ticket_are_skipped(nth: int, least: int) -> None:
    begins, left, first = {}, 100, 10
    while left > 0:
        begins[first + len(begins)] = left
        left -= piece_of(left, nth, least)
    for ticket in (0, *begins):
        assert pieces_before(100, nth, least, first, ticket) == (begins.get(ticket, 100), max(ticket, first))
    behind = first + len(begins)
    assert pieces_before(100, nth, least, first, behind) == (0, behind)
    assert pieces_before(100, nth, least, first, behind + 5) == (0, behind)


@pytest.mark.parametrize("nth", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 3])
def test_what_a_thread_asks_for_is_what_it_does_next(nth: int, count: int) -> None:
    shapes = ((40, 96), (3, 2080), (1, 64), (29, 32))
    table = table_of(*(LinearLayout(LinearKind.INT4, n * F32_LANES, i, 32, False) for n, i in shapes), piece=4)
    counts = np.array([count, 0], np.int64)
    begins, spans = [], []
    for op in table:
        (left, least), first = blocks_of(op, count), len(begins)
        while left > 0:
            begins.append(block_begin(op, int(op["rows"]) // F32_LANES - left))
            left -= piece_of(left, nth, least)
        spans.append((first, len(begins)))
    for row, (op, (first, behind)) in enumerate(zip(table, spans, strict=True)):
        blocks, least = blocks_of(op, count)
        known = spans[row + 1][1] if row + 1 < len(spans) else behind
        for ticket in range(first + 1, len(begins) + nth):
            left, number = pieces_before(blocks, nth, least, first, ticket)
            expected = begins[ticket] if ticket < known else op["weight"]
            assert next_begin(table, op, counts, left, number, ticket, nth) == expected


def test_a_linear_that_a_step_leaves_out_is_not_asked_for() -> None:
    layout = LinearLayout(LinearKind.INT8, 64, 64, 32, False)
    table = table_of(layout, layout)
    table[1]["over"] = LOGITS
    assert next_begin(table, table[0], np.array([1, 0], np.int64), 0, 9, 9, 2) == table[0]["weight"]
    assert next_begin(table, table[0], np.array([1, 1], np.int64), 0, 9, 9, 2) == block_begin(table[1], 0)

"""Parts of a program: what they read, what they give, where they may not be cut."""

from __future__ import annotations

import pytest

from edgellm.errors import UsageError
from edgellm.model import build_program, fuse
from edgellm.model.cut import cut_layers, cut_ops, layer_span, live_before
from tests.model.configs import read


def test_layers_take_and_give_hidden_states() -> None:
    program = fuse(build_program(read()))
    part = cut_layers(program, 1, 2)
    assert part.ops[0].kind == "inputs"
    assert part.ops[0].outputs == ("x",)
    assert part.result == "x"
    assert part.config.num_hidden_layers == 1
    assert {op.layer for op in part.ops[1:]} == {0}  # the part's cache has one layer
    assert all(name.startswith("layers.1.") for name in part.weights)


def test_the_head_gives_logits_and_the_beginning_needs_no_inputs() -> None:
    program = fuse(build_program(read()))
    begin, end = layer_span(program, 0, 2)
    head = cut_ops(program, end, len(program.ops))
    assert (head.result, head.ops[0].outputs) == ("logits", ("x",))
    assert cut_ops(program, 0, begin).ops == program.ops[:begin]


def test_what_is_alive_between_two_ops() -> None:
    program = fuse(build_program(read()))
    begin, end = layer_span(program, 0, 1)
    down = max(index for index in range(begin, end) if program.ops[index].kind == "linear")
    assert set(live_before(program, down)) == {"m", "x"}
    assert live_before(program, begin) == ("x",)
    assert live_before(program, 0) == ()


def test_a_cut_through_attention_is_refused() -> None:
    program = fuse(build_program(read()))
    attention = next(index for index, op in enumerate(program.ops) if op.kind == "attention")
    with pytest.raises(UsageError, match="keys and values"):
        cut_ops(program, 0, attention)


@pytest.mark.parametrize(("first", "last"), [(1, 1), (-1, 1), (0, 3)])
def test_layers_that_are_not_there(first: int, last: int) -> None:
    with pytest.raises(UsageError, match="no such layers"):
        layer_span(build_program(read()), first, last)

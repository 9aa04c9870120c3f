"""Which linears become one packed matrix, and how each is stored: from the program and the checkpoint's headers.

Linears that read one buffer one after the other (q/k/v) become one matrix, gate and up of an activation a paired one,
where they are stored alike; one launch then serves them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.backends.cuda.layout import LinearLayout, plan_linear
from edgellm.errors import UsageError
from edgellm.model.program import Op, Program
from edgellm.model.weights import Weights

#: Bits of the embedding and of an unquantized lm_head, by the option's value.
HEAD_BITS = {"int8": 8, "int4": 4, "keep": 16}
#: Names of what is stored, by bits.
STORED_NAMES = {4: "int4", 8: "int8", 16: "float16"}
_EMBEDDING, _HEAD = "embed_tokens", "lm_head"


@dataclass(frozen=True)
class MatrixPlan:
    """One packed matrix to be.

    Attributes:
        names: of the linears in it, their rows one behind the other or paired; or ("embed_tokens",).
        layout: the largest that it can have: whether zero points differ is only known once they are read.
        dense: stored in floating point.
        outputs: the buffers that it writes: those of its linears, or the product of a paired one.
    """

    names: tuple[str, ...]
    layout: LinearLayout
    dense: bool
    outputs: tuple[str, ...] = ()

    @property
    def paired(self) -> bool:
        return self.layout.paired


def plan_matrices(program: Program, weights: Weights, head: str) -> tuple[MatrixPlan, ...]:
    """Every matrix, in the order of the program; a head that is the embedding is the embedding's.

    Args:
        head: how the embedding and an unquantized lm_head are stored, of `HEAD_BITS`.

    Raises:
        UsageError: no such way to store them.
        ModelError: a linear is missing or stored in a way that is not supported.
    """
    if head not in HEAD_BITS:
        raise UsageError("no such choice", key="lm_head", found=head, allowed=", ".join(HEAD_BITS))
    return tuple(_planned(program, weights, head))


def _planned(program: Program, weights: Weights, head: str) -> Iterator[MatrixPlan]:
    ops = program.ops
    embeds = any(op.kind == "embed" for op in ops)  # a part of a program may begin behind it
    for index, op in enumerate(ops):
        if op.kind == "embed" or (op.kind == "logits" and not (weights.lm_head_is_embedding and embeds)):
            yield _plan(program, weights, op.weights, False, _head_bits(op.weights[0], weights, head))
        elif op.kind == "linear":
            follower = ops[index + 1] if index + 1 < len(ops) else None
            for names, outputs, paired in _joined(program, weights, op, follower):
                yield _plan(program, weights, names, paired, 16, outputs)


def _joined(
    program: Program, weights: Weights, op: Op, follower: Op | None
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], bool]]:
    """(names, buffers written, paired) of the matrices that a linear op becomes."""
    alike = len(op.weights) > 1 and len({_storage(weights, name) for name in op.weights}) == 1
    if alike and weights.describe(op.weights[0]).get("act_order"):
        orders = [weights.stored(name).permutation for name in op.weights]
        alike = all(np.array_equal(order, orders[0]) for order in orders)
    if alike and len(op.weights) == 2 and follower is not None and follower.kind == "act_mul":
        same_shape = len({program.weights[name].shape for name in op.weights}) == 1
        if same_shape and follower.inputs == op.outputs:
            yield op.weights, follower.outputs, True
            return
    if alike and not _normed_whole(program, op.outputs):
        yield op.weights, op.outputs, False
        return
    for name, output in zip(op.weights, op.outputs, strict=True):
        yield (name,), (output,), False


def _normed_whole(program: Program, buffers: tuple[str, ...]) -> bool:
    """Whether a norm runs over whole rows of one of the buffers, which then must stand by themselves."""
    return any(op.kind == "rms_norm" and "group" not in op.attributes and op.inputs[0] in buffers for op in program.ops)


def _storage(weights: Weights, name: str) -> tuple[Any, ...]:
    stored = weights.describe(name)
    if "group_size" not in stored:
        return ("dense",)
    return ("quantized", stored["bits"], stored["group_size"], stored["act_order"])


def _plan(
    program: Program,
    weights: Weights,
    names: tuple[str, ...],
    paired: bool,
    dense_bits: int,
    outputs: tuple[str, ...] = (),
) -> MatrixPlan:
    shapes = [program.weights[name].shape for name in names]
    rows, inputs = sum(shape[0] for shape in shapes), shapes[0][1]
    if names[0] == _EMBEDDING or (names[0] == _HEAD and weights.lm_head_is_embedding):
        return MatrixPlan(names, plan_linear(rows, inputs, dense_bits), True, outputs)
    stored = weights.describe(names[0])
    if "group_size" not in stored:
        return MatrixPlan(names, plan_linear(rows, inputs, dense_bits, paired=paired), True, outputs)
    group_size = stored["group_size"] if stored["group_size"] > 0 else inputs
    return MatrixPlan(names, plan_linear(rows, inputs, stored["bits"], group_size, paired=paired), False, outputs)


def _head_bits(name: str, weights: Weights, head: str) -> int:
    """Four bits are the head's alone: an embedding that is not the head has 8 then, for a token reads one row of it."""
    if name == _EMBEDDING and head == "int4" and not weights.lm_head_is_embedding:
        return 8
    return HEAD_BITS[head]

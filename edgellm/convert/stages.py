"""A decoder block cut where its linears are, for true-sequential quantization in one forward pass.

Stage i runs from where stage i - 1's activations were kept up to the i-th linear (linears that share an input are one),
whose input it shows. Once that linear is quantized, stage i + 1 runs it with its new weights: every linear sees what
the quantized ones before it really give, and nothing but a norm is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.model import Op, Program
from edgellm.model.cut import layer_span, live_before


@dataclass(frozen=True)
class Stage:
    """Ops begin..end-1 of the fused program, and what is kept of them.

    Attributes:
        begin, end: of the ops; equal where the linear reads what is kept already.
        reads: buffers it takes.
        keeps: the buffer that a later stage takes from this one, None where it takes none.
        linear: the op right behind, whose input is shown; None for the last stage of a block.
    """

    begin: int
    end: int
    reads: tuple[str, ...]
    keeps: str | None
    linear: Op | None


def stages_of(program: Program, layer: int) -> list[Stage]:
    """The stages of decoder layer `layer` of a fused program, in order."""
    first, last = layer_span(program, layer, layer + 1)
    linears = [index for index in range(first, last) if program.ops[index].kind == "linear"]
    # Stage i begins with the linear that stage i - 1 showed, or with the norm before it, which is cheaper than a store.
    begins = [first, *(_before_norm(program, index, first) for index in linears), last]
    ends = [*linears, last]
    stages = []
    for number, end in enumerate(ends):
        begin, following = begins[number], begins[number + 1]
        written = {name for op in program.ops[begin:following] for name in op.outputs}
        kept = [name for name in live_before(program, following) if name in written]
        linear = program.ops[end] if number < len(linears) else None
        reads = live_before(program, begin)
        stages.append(Stage(begin, end, _needed(program, begin, end, reads), kept[0] if kept else None, linear))
    return stages


def _before_norm(program: Program, index: int, first: int) -> int:
    """`index`, or that of the norm right before it that makes its input out of another buffer."""
    if index == first:
        return index
    before, linear = program.ops[index - 1], program.ops[index]
    makes_input = before.kind == "rms_norm" and before.outputs[0] == linear.inputs[0] != before.inputs[0]
    return index - 1 if makes_input else index


def _needed(program: Program, begin: int, end: int, alive: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the buffers that ops begin..end-1 read, or the next linear where there are no such ops."""
    ops = program.ops[begin:end] or program.ops[end : end + 1]
    read: set[str] = set()
    written: set[str] = set()
    for op in ops:
        read |= set(op.inputs) - written
        written |= set(op.outputs)
    return tuple(name for name in alive if name in read)

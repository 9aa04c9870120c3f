"""The fusion pass: neighbouring ops that read or feed the same buffer become one, visible in the program itself.

    linears that read one buffer one after the other (q/k/v, gate/up)  -> one linear with several outputs
    a linear whose only reader is the `add` right behind it             -> a linear that adds to the residual

Fused programs compute the same formulas on the same operands; a test holds the reference to equal results.
"""

from __future__ import annotations

from dataclasses import replace

from edgellm.model.program import Op, Program


def fuse(program: Program) -> Program:
    """The program with neighbouring ops joined; buffers that nobody uses any more are left out."""
    ops = _add_in_linear(_merge_linears(list(program.ops)))
    used = {name for op in ops for name in (*op.inputs, *op.outputs)}
    buffers = {name: width for name, width in program.buffers.items() if name in used}
    return replace(program, ops=tuple(ops), buffers=buffers)


def _merge_linears(ops: list[Op]) -> list[Op]:
    merged: list[Op] = []
    for op in ops:
        last = merged[-1] if merged else None
        if last is not None and last.kind == op.kind == "linear" and last.inputs == op.inputs:
            merged[-1] = replace(last, outputs=last.outputs + op.outputs, weights=last.weights + op.weights)
        else:
            merged.append(op)
    return merged


def _add_in_linear(ops: list[Op]) -> list[Op]:
    joined: list[Op] = []
    for op in ops:
        last = joined[-1] if joined else None
        if op.kind == "add" and last is not None and last.kind == "linear" and last.outputs == op.inputs[1:]:
            attributes = {"add": True, "multiplier": op.attributes["multiplier"]}
            joined[-1] = replace(last, inputs=(*last.inputs, *op.outputs), outputs=op.outputs, attributes=attributes)
        else:
            joined.append(op)
    return joined

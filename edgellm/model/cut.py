"""Parts of a program: decoder layers, or any run of ops, as a program of their own.

A part begins with an `inputs` op that takes the buffers it finds written (`Batch.inputs`), and its result is the buffer
that its last op writes. So one block of a model can run with its own weights in memory and nothing else, and layers
can be split between devices. Weights keep their names, which is where they are read from; layers are counted from the
first of the part, which is what sizes the part's cache.
"""

from __future__ import annotations

from dataclasses import replace

from edgellm.errors import UsageError
from edgellm.model.config import ModelConfig
from edgellm.model.program import Op, Program

_GIVEN = "token_ids"  # of the batch, never an input of a part


def layer_span(program: Program, first: int, last: int) -> tuple[int, int]:
    """Indexes (begin, end) of the ops of decoder layers `first` up to, not including, `last`."""
    found = [index for index, op in enumerate(program.ops) if op.layer is not None and first <= op.layer < last]
    if not found or not 0 <= first < last <= program.config.num_hidden_layers:
        allowed = f"0 to {program.config.num_hidden_layers}, the first below the last"
        raise UsageError("no such layers", key="layers", found=f"{first} to {last}", allowed=allowed)
    return found[0], found[-1] + 1


def live_before(program: Program, index: int) -> tuple[str, ...]:
    """Buffers that op `index` or a later one reads as earlier ops left them, in the order they are first read."""
    return _read_before_written(program.ops[index:])


def cut_layers(program: Program, first: int, last: int) -> Program:
    """Decoder layers `first` up to, not including, `last`: hidden states `x` in, hidden states `x` out."""
    return cut_ops(program, *layer_span(program, first, last))


def cut_ops(program: Program, begin: int, end: int, result: str | None = None) -> Program:
    """Ops `begin` up to, not including, `end` of `program` as a program of their own.

    Args:
        result: the buffer that a step gives; None for the one that the last op writes.

    Raises:
        UsageError: there are no such ops, or the cut parts an attention from the keys and values that it reads.
    """
    ops = program.ops[begin:end]
    if not ops or begin < 0 or end > len(program.ops):
        raise UsageError("no such ops", key="ops", found=f"{begin} to {end}", allowed=f"0 to {len(program.ops)}")
    _check_attention(ops)
    layers = [op.layer for op in ops if op.layer is not None]
    first = min(layers, default=0)
    ops = tuple(op if op.layer is None else replace(op, layer=op.layer - first) for op in ops)
    inputs = _read_before_written(ops)
    if inputs:
        ops = (Op("inputs", (), inputs), *ops)
    used = {name for op in ops for name in (*op.inputs, *op.outputs)}
    named = {name for op in ops for name in op.weights}
    written = [name for op in ops for name in op.outputs]
    return replace(
        program,
        config=_config_of(program.config, first, max(layers, default=-1) + 1),
        ops=ops,
        buffers={name: width for name, width in program.buffers.items() if name in used},
        weights={name: spec for name, spec in program.weights.items() if name in named},
        result=result or written[-1],
    )


def _read_before_written(ops: tuple[Op, ...]) -> tuple[str, ...]:
    read: dict[str, None] = {}
    written = {_GIVEN}
    for op in ops:
        read.update(dict.fromkeys(name for name in op.inputs if name not in written))
        written.update(op.outputs)
    return tuple(read)


def _check_attention(ops: tuple[Op, ...]) -> None:
    stored = {op.layer for op in ops if op.kind == "store_kv"}
    attended = {op.layer for op in ops if op.kind == "attention"}
    if stored != attended:
        raise UsageError("the cut parts an attention from its keys and values", key="ops", found=stored ^ attended)


def _config_of(config: ModelConfig, first: int, last: int) -> ModelConfig:
    return replace(
        config,
        num_hidden_layers=last - first if last > first else 0,
        layer_windows=config.layer_windows[first:last],
        layer_ropes=config.layer_ropes[first:last],
        intermediate_sizes=config.intermediate_sizes[first:last],
    )

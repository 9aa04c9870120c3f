"""What threads that never leave compiled code meet through: atomics on int64 arrays, ways to wait, a clock."""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba.core import types

from edgellm.simd.lowering import LOWERING
from edgellm.simd.operation import ArrayOf, Emitter, form, operation

_CELL = ir.IntType(64)
_CELLS = ArrayOf(types.int64, bytes_too=False)
_WRITTEN = ArrayOf(types.int64, written=True, bytes_too=False)


def _cell(emit: Emitter, array: ir.Value, index: ir.Value) -> Any:
    return emit.pointer(0, array, index, _CELL, 8)


@operation(form(types.int64, _WRITTEN, types.intp, types.int64))
def atomic_add(emit: Emitter, array: ir.Value, index: ir.Value, value: ir.Value) -> ir.Value:
    """Add to array[index] in one step, sequentially consistent; what stood there before."""
    return emit.builder.atomic_rmw("add", _cell(emit, array, index), value, "seq_cst")


@operation(form(types.int64, _CELLS, types.intp))
def atomic_load(emit: Emitter, array: ir.Value, index: ir.Value) -> ir.Value:
    """array[index]; what the thread that stored it wrote before is seen after (acquire)."""
    return emit.builder.load_atomic(_cell(emit, array, index), "acquire", 8)


@operation(form(types.void, _WRITTEN, types.intp, types.int64))
def atomic_store(emit: Emitter, array: ir.Value, index: ir.Value, value: ir.Value) -> None:
    """array[index] = value, after everything this thread wrote before (release)."""
    emit.builder.store_atomic(value, _cell(emit, array, index), "release", 8)


@operation(form(types.void))
def pause(emit: Emitter) -> None:
    """Tell the processor that this thread spins."""
    LOWERING.pause(emit)


@operation(form(types.void))
def yield_thread(emit: Emitter) -> None:
    """Let the system run another thread on this processor, if one waits for it."""
    emit.call("SwitchToThread" if sys.platform == "win32" else "sched_yield", ir.IntType(32))


@operation(form(types.int64))
def ticks(emit: Emitter) -> ir.Value:
    """A counter that runs at a constant rate of the machine's own, for differences; 0 where there is none to read."""
    return LOWERING.ticks(emit)

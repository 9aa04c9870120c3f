"""A kernel that does each op once: 32 lanes, operands and results as u32 [slot, 32], a window of memory an op."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

WINDOW = 256  # words of memory an op may touch
MEMORY = ("Global", "Shared")
_GIVE = {"f32": "ptx.f32_of_bits({})", "i32": "ptx.i32({})", "u16": "ptx.u16({})", "u32": "{}"}
_TAKE = {"f32": "ptx.bits_of_f32({})", "i32": "ptx.u32({})", "u16": "ptx.u32({})", "u32": "{}"}


@dataclass
class Layout:
    """Where in the kernel's arrays an op's operands, results and memory begin."""

    inputs: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)


def values_of(op: Any) -> list[str]:
    """Types of the operands that are no memory."""
    return [kind for kind in op.inputs if kind not in MEMORY]


@cache
def probe(capability: int) -> tuple[Any, Layout, str]:
    """The ops that are compiled otherwise there than for the target before, their layout, and the PTX of the kernel."""
    from edgellm.backends.cuda import ptx
    from edgellm.backends.cuda.kernels.declare import REGISTRY, kernel
    from edgellm.backends.cuda.ptx.compile import ptx_of

    ops = [op for op in ptx.OPS.values() if _belongs(op, capability)]
    layout, body = Layout(), []
    slots = results = 0
    for number, op in enumerate(ops):
        layout.inputs[op.name], layout.outputs[op.name] = slots, results
        layout.windows[op.name] = number * WINDOW
        body += _call(op, slots, results, number * WINDOW)
        slots += len(values_of(op))
        results += len(op.outputs)
    name = f"probe_{capability}"
    source = _SOURCE.format(name=name, body="\n".join("    " + line for line in body))
    scope: dict[str, Any] = {"ptx": ptx, "SHARED": len(ops) * WINDOW}
    exec(source, scope)
    parameters = (("given", "u32*"), ("found", "u32*"), ("memory", "u32*"), ("shared", "u32*"), ("count", "u32"))
    made = kernel(name, parameters, threads=32, lowest=capability)(scope[name])
    try:
        return ops, layout, ptx_of(made, capability)
    finally:
        del REGISTRY[name]


_SOURCE = """
def {name}(given, found, memory, shared, count):
    stage = ptx.cuda.shared.array(SHARED, ptx.u32, alignment=16)
    lane = ptx.u32(ptx.cuda.threadIdx.x)
    for i in range(lane, count, ptx.u32(32)):
        stage[i] = shared[i]
    ptx.cuda.syncthreads()
{body}
    ptx.cuda.syncthreads()
    for i in range(lane, count, ptx.u32(32)):
        shared[i] = stage[i]
"""


def _belongs(op: Any, capability: int) -> bool:
    if capability == 75:
        return op.lowest <= 75 or op.older is not None
    return op.lowest == capability


def _call(op: Any, slot: int, result: int, window: int) -> list[str]:
    operands = []
    for position, kind in enumerate(op.inputs):
        if kind in MEMORY:
            operands.append("memory" if kind == "Global" else "stage")
            continue
        value = f"given[{slot * 32} + lane]"
        is_index = position and op.inputs[position - 1] in MEMORY
        operands.append(f"ptx.u32({value} + {window})" if is_index else _GIVE[kind].format(value))
        slot += 1
    call = f"ptx.{op.name}({', '.join(operands)})"
    if not op.outputs:
        waits = ["ptx.cp_async_commit()", "ptx.cp_async_wait0()"] if op.name.startswith("cp_async") else []
        return [call, *waits]
    names = [f"r{result + k}" for k in range(len(op.outputs))]
    lines = [f"{', '.join(names)} = {call}"]
    for k, kind in enumerate(op.outputs):
        lines.append(f"found[{(result + k) * 32} + lane] = {_TAKE[kind].format(names[k])}")
    return lines


def dtype_of(kind: str) -> Any:
    return {"f32": np.float32, "i32": np.int32, "u16": np.uint16, "u32": np.uint32}[kind]

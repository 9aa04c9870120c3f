"""PTX around a few instructions, for tests of the emulator: arrays in, arrays out, one value a thread."""

from __future__ import annotations

import numpy as np

from tools.ptx_emulator import Memory, Module

HEADER = ".version 8.0\n.target sm_90\n.address_size 64\n"
_DECLARED = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}


def entry(parameters: list[str], body: str, before: str = "") -> str:
    """A module with the entry `kernel`; its parameters are p0, p1 ... of the types given."""
    listed = ", ".join(f".param .{kind} p{k}" for k, kind in enumerate(parameters))
    return f"{HEADER}{before}\n.visible .entry kernel({listed})\n{{\n{body}\nret;\n}}\n"


def launch(
    text: str, arguments: list, block: tuple[int, ...] = (32,), grid: tuple[int, ...] = (1,), races: bool = False
) -> Module:
    """Runs `kernel` of the text; `races` looks for everything that can be wrong with shared memory."""
    module = Module(text, Memory(), races=races, unwritten=races)
    module.launch("kernel", grid, block, arguments)
    return module


def run(code: str, outs: list[str], *inputs: np.ndarray) -> list[np.ndarray]:
    """The values of o0, o1 ... (numpy dtypes `outs`; "?" for a predicate) after `code`, whose inputs are i0, i1 ...

    Every input has one value a thread; there is one block of as many threads.
    """
    count = len(inputs[0])
    lines, stores = [".reg .b32 tid, one; .reg .b64 a, offset; mov.u32 tid, %tid.x;"], []
    results = [np.zeros(count, np.uint32 if kind == "?" else kind) for kind in outs]
    for k, array in enumerate([*inputs, *results]):
        size = array.itemsize
        lines.append(f"ld.param.u64 a, [p{k}]; mul.wide.u32 offset, tid, {size};")
        name = f"i{k}" if k < len(inputs) else f"o{k - len(inputs)}"
        if name[0] == "i":
            lines.append(f".reg .{_DECLARED[size]} {name}; add.u64 a, a, offset; ld.global.b{8 * size} {name}, [a];")
            continue
        predicate = outs[k - len(inputs)] == "?"
        lines.append(f".reg .{'pred' if predicate else _DECLARED[size]} {name};")
        shown = f"selp.u32 one, 1, 0, {name};" if predicate else ""
        source = "one" if predicate else name
        stores.append(f"ld.param.u64 a, [p{k}]; mul.wide.u32 offset, tid, {size}; add.u64 a, a, offset; {shown}")
        stores.append(f"st.global.b{8 * size} [a], {source};")
    body = "\n".join([*lines, code, *stores])
    launch(entry(["u64"] * (len(inputs) + len(outs)), body), [*inputs, *results], block=(count,))
    return [result.astype(bool) if kind == "?" else result for kind, result in zip(outs, results, strict=True)]

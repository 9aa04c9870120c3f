"""What the shipped kernels take on each device, measured on their machine code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgellm.backends.cuda.shipped import Shipped
from tools.cuda_code.assemble import Resources, assemble
from tools.cuda_code.sass import Code, disassemble


@dataclass(frozen=True)
class Measured:
    """A kernel on a device. `code` is None where nvdisasm is not installed or was not asked for."""

    name: str
    capability: int
    resources: Resources
    code: Code | None


def measure(code: Shipped, names: Iterable[str], capability: int, *, disassembled: bool = True) -> dict[str, Measured]:
    """Assemble the kernels for a device in one go. Raises `AssemblyError`."""
    chosen = [name for name in names if code.entries[name].runs_on(capability)]
    if not chosen:
        return {}
    assembled = assemble(code.module(chosen, capability), capability)
    listed = disassemble(assembled.cubin) if disassembled else {}
    return {name: Measured(name, capability, assembled.resources[name], listed.get(name)) for name in chosen}


def lines(rows: Iterable[Measured], weight_bits: dict[str, int]) -> list[str]:
    """The table as text: a header, then a line a row. `weight_bits` has the kernels that stream weights."""
    shown = [_line("kernel", "sm", "registers", "shared", "local", "instructions", "a weight")]
    for row in rows:
        count = density = "-"
        if row.code is not None:
            count = str(len(row.code.instructions))
            if row.name in weight_bits:
                density = f"{row.code.instructions_a_weight(weight_bits[row.name]):.2f}"
        taken = row.resources
        shown.append(_line(row.name, row.capability, taken.registers, taken.shared, taken.local, count, density))
    return shown


def _line(name: str, *cells: object) -> str:
    return f"{name:44s} " + " ".join(f"{cell!s:>12s}" for cell in cells)

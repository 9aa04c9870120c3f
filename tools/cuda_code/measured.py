"""What the shipped kernels take on each device, measured on their machine code and kept in `measured.json`.

Assembling and disassembling every kernel for nine devices takes minutes; so the results are kept beside a digest of the
text they are from, tests hold the kernels to their budgets by them, and measure some anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgellm.backends.cuda.kernels.declare import Budget
from edgellm.backends.cuda.shipped import Shipped
from tools.cuda_code.assemble import Resources, assemble
from tools.cuda_code.sass import Code, disassemble

MEASURED = Path(__file__).parent / "measured.json"

#: Devices that are measured: Turing, A100, Orin, Ada, Hopper, B200, Thor, RTX 50, GB10.
CAPABILITIES = (75, 80, 87, 89, 90, 100, 110, 120, 121)
Row = dict[str, Any]


def assembler() -> str:
    """What assembles: another version may take other registers."""
    return f"nvidia-nvjitlink {version('nvidia-nvjitlink')}"


def digest(code: Shipped, name: str, capability: int) -> str:
    """Of the text that a device of that capability is given."""
    return hashlib.sha256(code.module([name], capability).encode("ascii")).hexdigest()[:16]


def measure(code: Shipped, budgets: Mapping[str, Budget], names: Iterable[str], capability: int) -> dict[str, Row]:
    """A row for each kernel that runs on the device. Raises `AssemblyError`, `FileNotFoundError` without nvdisasm."""
    chosen = [name for name in names if code.entries[name].runs_on(capability)]
    if not chosen:
        return {}
    assembled = assemble(code.module(chosen, capability), capability)
    listed = disassemble(assembled.cubin)
    return {
        name: {"text": digest(code, name, capability), **_row(assembled.resources[name], listed[name], budgets[name])}
        for name in chosen
    }


def _row(taken: Resources, code: Code, budget: Budget) -> Row:
    row: Row = {"registers": taken.registers, "shared": taken.shared, "local": taken.local}
    row |= {"instructions": len(code.instructions), "calls": code.calls()}
    row["expects"] = list(budget.expects)
    row["missing"] = [pattern for pattern in budget.expects if not code.has(pattern)]
    if budget.weight_bits:
        row["a_weight"] = round(code.instructions_a_weight(budget.weight_bits), 2)
    return row


def broken(row: Row, budget: Budget) -> list[str]:
    """In what a measured kernel does not keep to its budget."""
    found = []
    if row["registers"] > budget.registers:
        found.append(f"{row['registers']} registers, budget {budget.registers}")
    if row["shared"] > budget.shared:
        found.append(f"{row['shared']} bytes of shared memory, budget {budget.shared}")
    if row["local"]:
        found.append(f"{row['local']} bytes of local memory")
    if row["calls"]:
        found.append(f"calls {', '.join(row['calls'])}")
    if row["missing"]:
        found.append(f"no {' and no '.join(row['missing'])}")
    if budget.weight_bits and not 0 < row["a_weight"] <= budget.instructions_a_weight:
        found.append(f"{row['a_weight']} instructions a weight, budget {budget.instructions_a_weight}")
    return found


def committed(path: Path = MEASURED) -> dict[str, dict[str, Row]]:
    """By kernel and capability (text), the rows of the file, whatever assembler they are of."""
    return json.loads(path.read_text(encoding="ascii"))["kernels"]


def read(path: Path = MEASURED) -> dict[str, dict[str, Row]]:
    """The rows; none where nothing was measured by this assembler."""
    if not path.exists() or json.loads(path.read_text(encoding="ascii"))["assembler"] != assembler():
        return {}
    return committed(path)


def bring_up_to_date(
    code: Shipped, budgets: Mapping[str, Budget], show: Callable[[str], None], path: Path = MEASURED
) -> dict[str, dict[str, Row]]:
    """Measure what is not in the file or has changed, and write it."""
    kept = read(path)
    rows = {
        name: {sm: row for sm, row in kept.get(name, {}).items() if entry.runs_on(int(sm))}
        for name, entry in code.entries.items()
    }
    for capability in CAPABILITIES:
        stale = [name for name in code.entries if _stale(code, budgets[name], rows[name], name, capability)]
        for name, row in measure(code, budgets, stale, capability).items():
            rows[name][str(capability)] = row
        show(f"sm_{capability}: {len(stale)} kernels measured")
        _write(path, rows)
    return rows


def _stale(code: Shipped, budget: Budget, rows: Mapping[str, Row], name: str, capability: int) -> bool:
    if not code.entries[name].runs_on(capability):
        return False
    row = rows.get(str(capability))
    return (
        row is None
        or row["text"] != digest(code, name, capability)
        or row["expects"] != list(budget.expects)
        or ("a_weight" in row) != bool(budget.weight_bits)
    )


def _write(path: Path, rows: Mapping[str, Mapping[str, Row]]) -> None:
    text = json.dumps({"assembler": assembler(), "kernels": {name: rows[name] for name in sorted(rows)}}, indent=1)
    text = re.sub(r"\{\s+(\"text\"[^{}]*?)\s+\}", lambda match: "{" + re.sub(r"\s+", " ", match[1]) + "}", text)
    path.write_text(text + "\n", encoding="ascii")


def lines(rows: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """The table as text: a header, then a line a kernel and device."""
    shown = [_line("kernel", "sm", "registers", "shared", "instructions", "a weight")]
    for name, devices in sorted(rows.items()):
        for capability, row in devices.items():
            cells = (row["registers"], row["shared"], row["instructions"], row.get("a_weight", "-"))
            shown.append(_line(name, capability, *cells))
    return shown


def _line(name: str, *cells: object) -> str:
    return f"{name:44s} " + " ".join(f"{cell!s:>12s}" for cell in cells)

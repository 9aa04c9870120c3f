"""Machine code as text, by kernel: what instructions it has, and its hot loop."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"^\s+/\*[0-9a-f]{4,6}\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)(?P<operands>[^;]*);")
_LABEL = re.compile(r"^(\.L_x?_?\w+):")
_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+)")
_TARGET = re.compile(r"`\(([\w.$]+)\)")
_WARP_HELPER = re.compile(r"cuda_sm70_\w*sync")  # where lanes of a warp may have parted, they meet in one of these
_WEIGHT_LOAD = re.compile(r"LDG\.E\.NA[\w.]*\.128|LDG\.E\.128[\w.]*NA|LDG[\w.]*\.NA\.[\w.]*128")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its opcode with all modifiers, and of a jump or call the label or function it goes to."""

    opcode: str
    target: str = ""


@dataclass(frozen=True)
class Code:
    """Machine code of a kernel. `labels` tells before which instruction each label stands."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]

    def has(self, pattern: str) -> bool:
        """Whether some opcode matches the regular expression from its begin."""
        return any(re.match(pattern, instruction.opcode) for instruction in self.instructions)

    def calls(self) -> list[str]:
        """The functions it calls, but for the assembler's own of warp-wide instructions; some of these are labels."""
        calls = {instruction.target for instruction in self.instructions if instruction.opcode.startswith("CALL")}
        return sorted(target for target in calls - self.labels.keys() if not _WARP_HELPER.search(target))

    def loops(self) -> list[tuple[Instruction, ...]]:
        """Every run of instructions that a branch at its end repeats."""
        found = []
        for position, instruction in enumerate(self.instructions):
            start = self.labels.get(instruction.target, len(self.instructions))
            if instruction.opcode.startswith("BRA") and start <= position:
                found.append(self.instructions[start : position + 1])
        return found

    def instructions_a_weight(self, bits: int) -> float:
        """Instructions of a thread for each weight of `bits` bits in the loop densest in `ldg128`; 0: none has any.

        The innermost of the loops that hold the loads: a loop around it counts everything twice.
        """
        best: tuple[int, int] | None = None
        for loop in self.loops():
            loads = sum(bool(_WEIGHT_LOAD.match(instruction.opcode)) for instruction in loop)
            if loads and (best is None or loads / len(loop) > best[0] / best[1]):
                best = (loads, len(loop))
        return best[1] / (best[0] * 128 / bits) if best else 0.0


def disassembler() -> str | None:
    """Path of nvdisasm, None where it is not installed."""
    try:
        from cuda.pathfinder import find_nvidia_binary_utility
    except ImportError:
        return None
    return find_nvidia_binary_utility("nvdisasm")


def disassemble(cubin: bytes) -> dict[str, Code]:
    """Code of every kernel of an assembled module. Needs nvdisasm; raises `subprocess.CalledProcessError`."""
    tool = disassembler()
    if tool is None:
        raise FileNotFoundError("nvdisasm: pip install nvidia-cuda-nvdisasm")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.cubin"
        path.write_bytes(cubin)
        shown = subprocess.run([tool, "-c", str(path)], capture_output=True, text=True, check=True)
    return _parse(shown.stdout)


def _parse(listing: str) -> dict[str, Code]:
    sections: dict[str, tuple[list[Instruction], dict[str, int]]] = {}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        section, label, match = _SECTION.match(line), _LABEL.match(line), _LINE.match(line)
        if section:
            instructions, labels = sections.setdefault(section[1], ([], {}))
        elif label:
            labels[label[1]] = len(instructions)
        elif match:
            jumps = match["opcode"].startswith(("BRA", "CALL"))
            target = _TARGET.search(match["operands"]) if jumps else None
            instructions.append(Instruction(match["opcode"], target[1] if target else ""))
    return {name: Code(tuple(listed), places) for name, (listed, places) in sections.items()}

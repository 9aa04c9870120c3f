"""Which target and PTX version an instruction needs, as far as the project's kernels go (PTX ISA, "PTX ISA Notes")."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tools.ptx_emulator.syntax import Instruction, Text, Vector

Version = tuple[int, int]


@dataclass(frozen=True)
class Need:
    """The lowest capability (times ten) and PTX version that take an instruction."""

    capability: int
    version: Version


def _has(*parts: str) -> Callable[[Instruction], bool]:
    return lambda ins: all(part in ins.parts for part in parts)


def _brain(ins: Instruction) -> bool:
    return any(part in ("bf16", "bf16x2") for part in ins.parts)


def _sink(ins: Instruction) -> bool:
    return any(isinstance(operand, Vector) and None in operand.items for operand in ins.operands)


# opcode -> (what to look for, need); every row that fits counts.
_RULES: dict[str, list[tuple[Callable[[Instruction], bool], Need]]] = {
    "mma": [
        (_has("m8n8k4"), Need(70, (6, 4))),
        (_has("m16n8k8"), Need(75, (6, 5))),
        (_has("m8n8k16"), Need(75, (6, 5))),
        (_has("m16n8k16"), Need(80, (7, 0))),
        (_has("m16n8k32"), Need(80, (7, 0))),
        (_brain, Need(80, (7, 0))),
    ],
    "ldmatrix": [(_has(), Need(75, (6, 5)))],
    "stmatrix": [(_has(), Need(90, (7, 8)))],
    "cp": [(_has("async"), Need(80, (7, 0))), (_has("bulk"), Need(90, (8, 0)))],
    "redux": [(_has(), Need(80, (7, 0)))],
    "elect": [(_has(), Need(90, (8, 0)))],
    "griddepcontrol": [(_has(), Need(90, (7, 8)))],
    "createpolicy": [(_has(), Need(80, (7, 4)))],
    "tanh": [(_has("f32"), Need(75, (7, 0))), (_has("f16x2"), Need(75, (7, 0))), (_brain, Need(90, (7, 8)))],
    "ex2": [(_has("f16x2"), Need(75, (7, 0))), (_brain, Need(90, (7, 8)))],
    "fma": [(_brain, Need(80, (7, 0))), (_has("relu"), Need(80, (7, 0)))],
    "add": [(_brain, Need(90, (7, 8)))],
    "sub": [(_brain, Need(90, (7, 8)))],
    "mul": [(_brain, Need(90, (7, 8)))],
    "min": [(_brain, Need(80, (7, 0))), (_has("f16x2"), Need(80, (7, 0))), (_has("NaN"), Need(80, (7, 0)))],
    "max": [(_brain, Need(80, (7, 0))), (_has("f16x2"), Need(80, (7, 0))), (_has("NaN"), Need(80, (7, 0)))],
    "neg": [(_brain, Need(80, (7, 0)))],
    "abs": [(_brain, Need(80, (7, 0)))],
    "cvt": [
        (_has("bf16x2"), Need(80, (7, 0))),
        (_has("f16x2"), Need(80, (7, 0))),
        (_has("relu"), Need(80, (7, 0))),
        (_has("tf32"), Need(80, (7, 0))),
        (lambda ins: "bf16" in ins.parts and ins.parts[-1] == "f32", Need(80, (7, 0))),
        # From a bfloat16 (f32.bf16 too) needs Hopper; shifting the bits does the same everywhere.
        (lambda ins: ins.parts[-1] == "bf16", Need(90, (7, 8))),
    ],
    "ld": [
        (lambda ins: any(part.startswith("L1::") for part in ins.parts), Need(70, (7, 4))),
        (lambda ins: any(part.startswith("L2::") for part in ins.parts), Need(75, (7, 4))),
        (_has("L2::cache_hint"), Need(80, (7, 4))),
        (_has("v8"), Need(100, (8, 8))),
    ],
    "st": [(_has("v8"), Need(100, (8, 8)))],
    "mov": [(_sink, Need(0, (8, 3)))],
    "activemask": [(_has(), Need(30, (6, 2)))],
    "match": [(_has(), Need(70, (6, 0)))],
    "dp4a": [(_has(), Need(61, (5, 0)))],
}


def need_of(ins: Instruction) -> Need:
    """What takes the instruction; (0, (0, 0)) when every target that the project knows does."""
    found = [need for fits, need in _RULES.get(ins.root, ()) if fits(ins)]
    return Need(max((need.capability for need in found), default=0), max((n.version for n in found), default=(0, 0)))


def too_new(text: Text) -> Iterator[str]:
    """A sentence for every instruction that the file's own .target or .version does not have, as ptxas says it."""
    digits = "".join(character for character in text.target if character.isdigit())
    capability = int(digits or 0)
    for function in text.functions.values():
        for ins in function.body:
            need = need_of(ins)
            name = ".".join(ins.parts)
            if need.capability > capability:
                yield f"line {ins.line}: {name} requires .target sm_{need.capability} or higher"
            if need.version > text.version:
                yield f"line {ins.line}: {name} requires PTX ISA .version {need.version[0]}.{need.version[1]} or later"

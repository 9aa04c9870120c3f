"""Shuffles, votes, matches and reductions over a warp."""

from __future__ import annotations

import numpy as np

from tools.ptx_emulator.frame import WARP, Active, Frame
from tools.ptx_emulator.registry import Run, known, operation, type_of, unknown
from tools.ptx_emulator.syntax import Instruction, Pair
from tools.ptx_emulator.types import TYPES

_U32 = TYPES["u32"]


def membermask(ins: Instruction, frame: Frame) -> np.ndarray | None:
    """The operand that says which lanes take part; None where the whole warp must."""
    if ins.root in ("shfl", "vote", "match", "redux", "elect"):
        return frame.read(ins.operands[-1], _U32, ins)
    if ins.root in ("bar", "barrier"):
        return frame.read(ins.operands[0], _U32, ins)
    return None


@operation("shfl", collective=True)
def compile_shuffle(ins: Instruction, frame: Frame) -> Run:
    known(ins, "sync", "up", "down", "bfly", "idx")
    if ins.parts[1] != "sync":
        raise unknown(ins)
    mode = ins.parts[2]
    target = ins.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    out = frame.write(first, TYPES["b32"], ins)
    valid = frame.write(second, TYPES["pred"], ins) if second is not None else None
    source, by, clamp = (frame.read(operand, TYPES["b32"], ins) for operand in ins.operands[1:4])
    number = np.arange(frame.threads)
    fixed = by.strides == (0,) and clamp.strides == (0,)
    cached = _shuffled(mode, number % WARP, by, clamp) if fixed else None

    def run(active: Active) -> None:
        lanes = active.lanes
        lane, inside = cached if fixed else _shuffled(mode, number % WARP, by, clamp)
        origin = (number - number % WARP + lane)[lanes]
        if not active.mask[origin].all():
            wrong = int(active.indices()[np.flatnonzero(~active.mask[origin])[0]])
            raise frame.fail(ins, "reads a register of a lane that does not take part", wrong)
        values = source[origin]
        out[lanes] = values
        if valid is not None:
            valid[lanes] = inside[lanes]

    return run


def _shuffled(mode: str, lane: np.ndarray, by: np.ndarray, clamp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(lane read, whether it is in range) of every thread, as the PTX manual's pseudo code has it."""
    by, limit, segment = (by & 31).astype(np.int64), (clamp & 31).astype(np.int64), (clamp >> 8 & 31).astype(np.int64)
    highest = lane & segment | limit & ~segment
    if mode == "up":
        wanted = lane - by
        inside = wanted >= highest
    else:
        wanted = {"down": lane + by, "bfly": lane ^ by, "idx": lane & segment | by & ~segment}[mode]
        inside = wanted <= highest
    return np.where(inside, wanted, lane), inside


def ballot(marked: np.ndarray) -> np.ndarray:
    """[threads] bool -> the 32 bits of each warp, [warps]."""
    return np.packbits(marked.reshape(-1, WARP), axis=1, bitorder="little").view(np.uint32)[:, 0]


@operation("vote", collective=True)
def compile_vote(ins: Instruction, frame: Frame) -> Run:
    known(ins, "sync", "all", "any", "uni", "ballot")
    if ins.parts[1] != "sync":
        raise unknown(ins)
    mode = ins.parts[2]
    of = TYPES["b32"] if mode == "ballot" else TYPES["pred"]
    out = frame.write(ins.operands[0], of, ins)
    predicate, negate = frame.predicate(ins.operands[1], ins)
    members = membermask(ins, frame)

    def run(active: Active) -> None:
        marked = active.mask & (predicate ^ negate)
        here, true = np.repeat(ballot(active.mask), WARP), np.repeat(ballot(marked), WARP)
        here, true = here & members, true & members
        answer = {"ballot": true, "any": true != 0, "all": true == here, "uni": (true == here) | (true == 0)}[mode]
        out[active.lanes] = answer[active.lanes]

    return run


@operation("activemask")
def compile_active(ins: Instruction, frame: Frame) -> Run:
    out = frame.write(ins.operands[0], TYPES["b32"], ins)

    def run(active: Active) -> None:
        out[active.lanes] = np.repeat(ballot(active.mask), WARP)[active.lanes]

    return run


@operation("match", collective=True)
def compile_match(ins: Instruction, frame: Frame) -> Run:
    known(ins, "sync", "any", "all")
    every = ins.parts[1] == "all" or "all" in ins.parts
    target = ins.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    out = frame.write(first, TYPES["b32"], ins)
    valid = frame.write(second, TYPES["pred"], ins) if second is not None else None
    source = frame.read(ins.operands[1], type_of(ins), ins)

    def run(active: Active) -> None:
        values, mask = source.reshape(-1, WARP), active.mask.reshape(-1, WARP)
        same = (values[:, :, None] == values[:, None, :]) & mask[:, None, :]
        bits = np.packbits(same, axis=2, bitorder="little").view(np.uint32)[..., 0]
        if every:
            agree = (bits == ballot(active.mask)[:, None]).reshape(-1)
            bits = np.where(agree.reshape(bits.shape), bits, np.uint32(0))
            if valid is not None:
                valid[active.lanes] = agree[active.lanes]
        out[active.lanes] = bits.reshape(-1)[active.lanes]

    return run


_REDUCTIONS = {
    "add": (np.add, 0),
    "min": (np.minimum, None),
    "max": (np.maximum, None),
    "and": (np.bitwise_and, -1),
    "or": (np.bitwise_or, 0),
    "xor": (np.bitwise_xor, 0),
}


@operation("redux", collective=True)
def compile_reduction(ins: Instruction, frame: Frame) -> Run:
    of = type_of(ins)
    known(ins, "sync", *_REDUCTIONS)
    if of.kind == "f":
        raise unknown(ins)
    function, neutral = _REDUCTIONS[ins.parts[2]]
    if neutral is None:
        limits = np.iinfo(of.dtype)
        neutral = limits.max if ins.parts[2] == "min" else limits.min
    out, source = frame.write(ins.operands[0], of, ins), frame.read(ins.operands[1], of, ins)
    rest = np.array(neutral).astype(of.dtype)

    def run(active: Active) -> None:
        values = np.where(active.mask, source, rest).reshape(-1, WARP)
        answer = function.reduce(values, axis=1, dtype=of.dtype)
        out[active.lanes] = np.repeat(answer, WARP)[active.lanes]

    return run


@operation("elect", collective=True)
def compile_elect(ins: Instruction, frame: Frame) -> Run:
    target = ins.operands[0]
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
    out, chosen = frame.write(first, TYPES["b32"], ins), frame.write(second, TYPES["pred"], ins)

    def run(active: Active) -> None:
        lowest = np.repeat(active.mask.reshape(-1, WARP).argmax(1), WARP)
        out[active.lanes] = lowest[active.lanes]
        chosen[active.lanes] = (np.arange(frame.threads) % WARP == lowest)[active.lanes]

    return run

"""cp.async: copies into shared memory that are there only after a wait."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.ptx_emulator.access import Access
from tools.ptx_emulator.frame import Active, Frame
from tools.ptx_emulator.registry import Run, operation, unknown
from tools.ptx_emulator.syntax import Immediate, Instruction, Register
from tools.ptx_emulator.types import TYPES


@dataclass
class _Copy:
    """One executed cp.async: `target` are flat byte places in the shared bank, `data` [lanes, bytes]."""

    lanes: np.ndarray
    group: np.ndarray
    target: np.ndarray
    data: np.ndarray


class AsyncCopies:
    """The copies of a frame that no wait has completed. Their places may not be touched until then."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.committed = np.zeros(frame.threads, np.int64)
        self.busy = np.zeros(frame.shared.data.size, bool)
        self.copies: list[_Copy] = []

    def reset(self) -> None:
        self.committed.fill(0)
        self.busy.fill(False)
        self.copies.clear()

    def start(self, lanes: np.ndarray, target: np.ndarray, data: np.ndarray) -> None:
        self.copies.append(_Copy(lanes, self.committed[lanes], target, data))
        self.busy[target] = True

    def commit(self, active: Active) -> None:
        self.committed[active.lanes] += 1

    def wait(self, active: Active, left: int | None) -> None:
        """Completes all but the `left` latest groups of the threads; everything they started for None."""
        limit = np.full(self.committed.size, -1)
        limit[active.lanes] = np.iinfo(np.int64).max if left is None else self.committed[active.lanes] - left
        kept = []
        for copy in self.copies:
            done = copy.group < limit[copy.lanes]
            if done.any():
                target = copy.target[done]
                self.frame.shared.data[target] = copy.data[done]
                self.busy[target] = False
                if self.frame.watch is not None:
                    self.frame.watch.written(target, copy.lanes[done])
            if not done.all():
                stay = ~done
                kept.append(_Copy(copy.lanes[stay], copy.group[stay], copy.target[stay], copy.data[stay]))
        self.copies = kept

    def check(self, access: Access, index: np.ndarray, lanes: slice | np.ndarray) -> None:
        """Raises when an access reaches bytes whose copy is still on its way."""
        if not self.copies:
            return
        first = index * access.item
        hit = self.busy.take(first) | self.busy.take(first + access.width - 1)
        if hit.any():
            at = int(np.flatnonzero(hit)[0])
            thread = at if isinstance(lanes, slice) else int(lanes[at])
            raise self.frame.fail(
                access.ins, "shared memory that a cp.async is still filling (no cp.async.wait_group before)", thread
            )


@operation("cp")
def compile_copy(ins: Instruction, frame: Frame) -> Run:
    """cp.async.{ca,cg}.shared.global [to], [from], size{, source size}; and its commit and waits."""
    if ins.parts[1] != "async" or "bulk" in ins.parts or "mbarrier" in ins.parts:
        raise unknown(ins)
    if frame.copies is None:
        frame.copies = AsyncCopies(frame)
    copies = frame.copies
    if ins.parts[2] == "commit_group":
        return copies.commit
    if ins.parts[2] == "wait_all":
        return lambda active: copies.wait(active, None)
    if ins.parts[2] == "wait_group":
        left = ins.operands[0]
        if not isinstance(left, Immediate):
            raise unknown(ins)
        return lambda active: copies.wait(active, left.value)
    return _compile_start(ins, frame, copies)


def _compile_start(ins: Instruction, frame: Frame, copies: AsyncCopies) -> Run:
    known = {"async", "ca", "cg", "shared", "shared::cta", "global", "L2::64B", "L2::128B", "L2::256B"}
    size = ins.operands[2]
    if set(ins.parts[1:]) - known - {"L2::cache_hint"} or not isinstance(size, Immediate):
        raise unknown(ins)
    if size.value not in (4, 8, 16) or ("cg" in ins.parts and size.value != 16):
        raise frame.fail(ins, f"a copy of {size.value} bytes")
    extra = list(ins.operands[3:-1] if "L2::cache_hint" in ins.parts else ins.operands[3:])
    target = Access(ins, frame, ins.operands[0], "shared", 1, size.value, writes=True)
    # A source size of 0 reads nothing, so its address need not be good.
    source = Access(ins, frame, ins.operands[1], "global", 1, size.value)
    given = frame.read(extra[0], TYPES["u32"], ins) if extra and not _is_predicate(extra[0]) else None
    if extra and given is None:
        raise unknown(ins)
    places = np.arange(size.value)

    def run(active: Active) -> None:
        (_, index, _) = target.pieces(active)[0]
        lanes = active.indices()
        data = np.zeros((lanes.size, size.value), np.uint8)
        reads = active if given is None else active.select(given > 0)
        if reads is not None:
            row = np.zeros(frame.threads, np.int64)
            row[lanes] = np.arange(lanes.size)
            for view, start, these in source.pieces(reads):
                data[row[these]] = view.take(start[:, None] + places, mode="clip")
        if given is not None:
            data[places[None, :] >= given[lanes, None]] = 0
        copies.start(lanes, index[:, None] + places, data)

    return run


def _is_predicate(operand: object) -> bool:
    return isinstance(operand, Register) and operand.bits == 1

"""bar.sync, bar.arrive, bar.red and their barrier.* spellings."""

from __future__ import annotations

import numpy as np

from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.frame import WARP, Active, Frame
from tools.ptx_emulator.registry import Run, operation, unknown
from tools.ptx_emulator.syntax import Instruction, Operand
from tools.ptx_emulator.types import TYPES

NUMBER = 16
_U32 = TYPES["u32"]
Goes = list[tuple[int, Active]]


def is_barrier(ins: Instruction) -> bool:
    """Whether the scheduler handles it: every barrier but those of one warp."""
    return ins.root in ("bar", "barrier") and ins.parts[1:2] != ("warp",)


class Barriers:
    """The sixteen barriers of every block of a frame."""

    def __init__(self, frame: Frame, code: list[Instruction]) -> None:
        self.frame = frame
        self.code = code
        self.reset(frame.start.mask)

    def reset(self, live: np.ndarray) -> None:
        blocks = self.frame.shape.blocks
        self.live = live.copy()
        self.at = np.full(live.size, -1)  # the barrier instruction where a thread waits, -1 when it does not
        self.number = np.zeros(live.size, np.int64)
        self.arrived = np.zeros((NUMBER, blocks), np.int64)
        self.wanted = np.zeros((NUMBER, blocks), np.int64)  # 0: all threads of the block
        self.reducing: dict[int, Instruction] = {}
        self.waiting = 0

    def _operands(self, ins: Instruction) -> tuple[Operand | None, Operand | None]:
        """(barrier number, thread count or None) of any of the forms."""
        rest = list(ins.operands)
        if "red" in ins.parts:
            rest = rest[1:-1]
        return rest[0], rest[1] if len(rest) > 1 else None

    def arrive(self, at: int, ins: Instruction, active: Active) -> Goes:
        """Notes the threads' arrival; returns the groups that go on."""
        kinds = {"sync", "arrive", "red", "cta", "aligned", "popc", "and", "or"}
        if {part for part in ins.parts[1:] if part not in TYPES} - kinds:
            raise unknown(ins)
        frame, blocks = self.frame, self.frame.shape.blocks
        number_operand, count_operand = self._operands(ins)
        numbers = frame.read(number_operand, _U32, ins)[active.lanes]
        if (numbers != numbers[0]).any() or numbers[0] >= NUMBER:
            raise frame.fail(ins, "threads name different barriers, or one above 15", int(active.indices()[0]))
        number = int(numbers[0])
        per_block = active.mask.reshape(blocks, -1).sum(1)
        waits = "arrive" not in ins.parts
        if waits:
            if "red" in ins.parts:
                self.reducing[at] = ins
            if self.waiting == 0 and count_operand is None and not self.arrived[number].any():
                complete = per_block == self.live.reshape(blocks, -1).sum(1)
                if complete[per_block > 0].all():
                    self._released(per_block > 0)
                    self._reduce(at, active.mask)
                    return [(at + 1, active)]
            self.at[active.lanes] = at
            self.number[active.lanes] = number
            self.waiting += active.count
        self.arrived[number] += per_block
        if count_operand is not None:
            count = frame.read(count_operand, _U32, ins)[active.lanes]
            if (count % WARP).any():
                raise frame.fail(ins, f"a count of {count[0]} is no multiple of {WARP}", int(active.indices()[0]))
            self.wanted[number][per_block > 0] = int(count[0])
        goes = [] if waits else [(at + 1, active)]
        return goes + self._complete(number)

    def left(self, live: np.ndarray) -> Goes:
        """Threads have left: barriers of all threads may be complete without them."""
        self.live = live.copy()
        if not self.waiting:
            return []
        return [go for number in range(NUMBER) if self.arrived[number].any() for go in self._complete(number)]

    def _complete(self, number: int) -> Goes:
        blocks = self.frame.shape.blocks
        alive = self.live.reshape(blocks, -1).sum(1)
        wanted = np.where(self.wanted[number] > 0, self.wanted[number], alive)
        done = (self.arrived[number] >= wanted) & (self.arrived[number] > 0)
        if not done.any():
            return []
        free = np.repeat(done, self.frame.shape.lanes) & (self.at >= 0) & (self.number == number)
        self._check_warps(free)
        self._released(done)
        self.arrived[number][done] = 0
        self.wanted[number][done] = 0
        goes = []
        for at in np.unique(self.at[free]):
            mask = free & (self.at == at)
            self._reduce(int(at), mask)
            goes.append((int(at) + 1, Active(mask, full=int(mask.sum()) == int(self.live.sum()))))
        self.at[free] = -1
        self.waiting -= int(np.count_nonzero(free))
        return goes

    def _check_warps(self, free: np.ndarray) -> None:
        """A warp's threads must have arrived at one and the same instruction."""
        at = np.where(free, self.at, -1).reshape(-1, WARP)
        highest = at.max(1)
        lowest = np.where(at < 0, highest[:, None], at).min(1)
        if (highest != lowest).any():
            thread = int(np.flatnonzero(highest != lowest)[0]) * WARP
            raise self.frame.fail(
                self.code[int(highest.max())], "lanes of one warp wait at different barrier instructions", thread
            )

    def _released(self, blocks: np.ndarray) -> None:
        if self.frame.watch is not None:
            self.frame.watch.barrier(blocks)

    # ---------------------------------------------------------------- reductions
    def _reduce(self, at: int, mask: np.ndarray) -> None:
        """bar.red: every thread gets the count, the and or the or of the block's predicates."""
        if at not in self.reducing:
            return
        ins = self.reducing[at]
        frame, blocks = self.frame, self.frame.shape.blocks
        predicate, negate = frame.predicate(ins.operands[-1], ins)
        values = (predicate ^ negate).reshape(blocks, -1)
        inside = mask.reshape(blocks, -1)
        if "popc" in ins.parts:
            answer, out = (values & inside).sum(1), frame.write(ins.operands[0], _U32, ins)
        else:
            answer = (values & inside).any(1) if "or" in ins.parts else (values | ~inside).all(1)
            out = frame.predicate(ins.operands[0], ins)[0]
        out[mask] = np.repeat(answer, self.frame.shape.lanes)[mask]

    def stuck(self) -> EmulatorError:
        """The error for threads that wait for ever."""
        thread = int(np.flatnonzero(self.at >= 0)[0])
        ins = self.code[int(self.at[thread])]
        return self.frame.fail(ins, f"{self.waiting} threads wait for ever at a barrier", thread)


@operation("bar", "barrier")
def compile_warp_barrier(ins: Instruction, frame: Frame) -> Run:
    """bar.warp.sync: the scheduler has gathered the lanes already."""
    if ins.parts[1] != "warp":
        raise unknown(ins)

    def run(active: Active) -> None:
        if frame.watch is not None:
            frame.watch.warp_barrier(active.indices())

    return run

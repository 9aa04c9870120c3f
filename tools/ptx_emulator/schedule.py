"""Runs the threads of a frame: groups at one place, the earliest place first, merged where they meet again."""

from __future__ import annotations

import numpy as np

from tools.ptx_emulator.barriers import Barriers, is_barrier
from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.frame import WARP, Active, Frame
from tools.ptx_emulator.op_warp import membermask
from tools.ptx_emulator.registry import COLLECTIVES, OPERATIONS, Run
from tools.ptx_emulator.syntax import Function, Instruction, Symbol
from tools.ptx_emulator.types import TYPES

# After so many segments of one group another waiting group gets a turn, so that a thread may spin on a flag.
PATIENCE = 1 << 10
LIMIT = 20_000_000
_BRANCHES = ("bra", "brx", "ret", "exit", "trap")


def is_known(ins: Instruction) -> bool:
    """Whether the opcode's first word is one; its modifiers are looked at when a frame is made."""
    return ins.root in OPERATIONS or ins.root in _BRANCHES or is_barrier(ins)


class Program:
    """A function's instructions compiled for one frame."""

    def __init__(self, function: Function, frame: Frame) -> None:
        self.function, self.frame = function, frame
        self.code = function.body
        self.barriers = Barriers(frame, self.code)
        self.leaders = set(function.labels.values())
        self.control = [ins.root in _BRANCHES or is_barrier(ins) for ins in self.code]
        self.collective = [self._is_collective(ins) for ins in self.code]
        self.members = {k: membermask(ins, frame) for k, ins in enumerate(self.code) if self.collective[k]}
        # Masks that are not all ones at sight are looked at even when every thread is there.
        self.masked = [k in self.members and not _everybody(self.members[k]) for k in range(len(self.code))]
        self.runs = [None if self.control[k] else self._compiled(ins) for k, ins in enumerate(self.code)]
        self._together: dict[int, tuple[list[Run], int]] = {}
        self._apart: dict[int, tuple[list[Run], int]] = {}
        self.live = frame.start.mask.copy()
        self.count = frame.start.count

    @staticmethod
    def _is_collective(ins: Instruction) -> bool:
        return ins.root in COLLECTIVES or (ins.root in ("bar", "barrier") and ins.parts[1] == "warp")

    def _compiled(self, ins: Instruction) -> Run:
        try:
            run = OPERATIONS[ins.root](ins, self.frame)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise EmulatorError(f"cannot make sense of `{ins.text}`: {error}", ins.line) from error
        run = self._metered(ins, run)
        if ins.guard is None:
            return run
        predicate, negate = self.frame.values[ins.guard.register], ins.guard.negate

        def guarded(active: Active) -> None:
            chosen = active.select(~predicate if negate else predicate)
            if chosen is not None:
                run(chosen)

        return guarded

    def _metered(self, ins: Instruction, run: Run) -> Run:
        meter = self.frame.meter
        if meter is None:
            return run

        def counted(active: Active) -> None:
            meter.executed(ins, active)
            run(active)

        return counted

    # ---------------------------------------------------------------- segments
    def _segment(self, start: int, together: bool) -> tuple[list[Run], int]:
        """The closures from `start` to the next branch or label (or warp-wide operation) and where that is."""
        cache = self._together if together else self._apart
        if start not in cache:
            end = start
            while end < len(self.code) and not self.control[end]:
                end += 1
                if end in self.leaders or (
                    end < len(self.code) and (self.masked if together else self.collective)[end]
                ):
                    break
            cache[start] = (self.runs[start:end], end)
        return cache[start]

    # ---------------------------------------------------------------- running
    def run(self) -> None:
        """All threads of the frame from the first instruction to their exits."""
        frame = self.frame
        self.live = frame.start.mask.copy()
        self.count = frame.start.count
        self.barriers.reset(self.live)
        self.pending: dict[int, Active] = {0: frame.start}
        self.parked: dict[int, Active] = {}
        turns, tired = 0, -1
        with np.errstate(all="ignore"):
            while True:
                if not self.pending:
                    if self.parked or self.barriers.waiting:
                        raise self._stuck()
                    return
                turns += 1
                if turns > LIMIT:
                    raise EmulatorError(f"{self.function.name} does not end")
                at = min((place for place in self.pending if place != tired), default=tired)
                tired = self._follow(at, self.pending.pop(at))

    def _follow(self, at: int, active: Active) -> int:
        """Runs one group until it branches apart, meets another group or waits.

        Returns:
            Where it is when it has gone on for too long and another group should have a turn, else -1.
        """
        for _ in range(PATIENCE):
            if at >= len(self.code):
                self._leave(active)
                return -1
            if self.masked[at] or (self.collective[at] and active.count != self.live.size):
                ready = self._gathered(at, active)
                if ready is None:
                    return -1
                active = ready
            whole = active.count == self.live.size
            if active.count == self.count and not active.full:
                active = Active(active.mask, full=True)
            runs, end = self._segment(at, whole)
            for run in runs:
                run(active)
            goes = self._control(end, active) if end < len(self.code) and self.control[end] else [(end, active)]
            if len(goes) != 1 or (self.pending and goes[0][0] >= min(self.pending)):
                for place, group in goes:
                    self._add(place, group)
                return -1
            at, active = goes[0]
        self._add(at, active)
        return at

    def _add(self, at: int, active: Active) -> None:
        other = self.pending.get(at)
        self.pending[at] = active if other is None else self._joined(other.mask | active.mask)

    def _joined(self, mask: np.ndarray) -> Active:
        return Active(mask, full=int(np.count_nonzero(mask)) == self.count)

    def _gathered(self, at: int, active: Active) -> Active | None:
        """The threads whose warps are complete for the collective at `at`; the others are parked there."""
        if at in self.parked:
            active = self._joined(self.parked.pop(at).mask | active.mask)
        members = self.members[at]
        needed = self.live.reshape(-1, WARP)
        if members is None:
            lone = active.mask.reshape(-1, WARP).any(1) & ~needed.all(1)
            if lone.any():
                thread = int(np.flatnonzero(lone)[0]) * WARP
                raise self.frame.fail(self.code[at], "lanes of the warp have left the kernel", thread)
            missing = needed & ~active.mask.reshape(-1, WARP)
            ready = np.repeat(~missing.any(1), WARP) & active.mask
        else:
            ready = self._members_ready(at, active, members)
        if ready.all() or int(np.count_nonzero(ready)) == active.count:
            return active
        self.parked[at] = Active(active.mask & ~ready)
        return self._joined(ready) if ready.any() else None

    def _members_ready(self, at: int, active: Active, members: np.ndarray) -> np.ndarray:
        """Threads all of whose fellow members (that have not left) are there too."""
        own = np.uint32(1) << (np.arange(self.live.size) % WARP).astype(np.uint32)
        outside = active.mask & ((members & own) == 0)
        if outside.any():
            raise self.frame.fail(self.code[at], "a lane outside its membermask", int(np.flatnonzero(outside)[0]))
        here = np.repeat(_bits(active.mask), WARP)
        alive = np.repeat(_bits(self.live), WARP)
        return active.mask & ((members & alive & ~here) == 0)

    # ---------------------------------------------------------------- control
    def _control(self, at: int, active: Active) -> list[tuple[int, Active]]:
        ins = self.code[at]
        if self.frame.meter is not None:
            self.frame.meter.executed(ins, active)
        taken: Active | None = active
        if ins.guard is not None:
            predicate = self.frame.values[ins.guard.register]
            taken = active.select(~predicate if ins.guard.negate else predicate)
        if taken is None:
            return [(at + 1, active)]
        goes = [] if taken is active else [(at + 1, Active(active.mask & ~taken.mask))]
        if ins.root == "bra":
            return [*goes, (self._target(ins), taken)]
        if ins.root == "brx":
            return goes + self._indexed(ins, taken)
        if ins.root in ("ret", "exit"):
            self._leave(taken)
            return goes
        if ins.root == "trap":
            raise self.frame.fail(ins, "the kernel gave up", int(taken.indices()[0]))
        return goes + self.barriers.arrive(at, ins, taken)

    def _target(self, ins: Instruction) -> int:
        name = ins.operands[0]
        if not isinstance(name, Symbol) or name.name not in self.function.labels:
            raise EmulatorError(f"no label for `{ins.text}`", ins.line)
        return self.function.labels[name.name]

    def _indexed(self, ins: Instruction, active: Active) -> list[tuple[int, Active]]:
        table = self.function.tables.get(getattr(ins.operands[1], "name", ""))
        if table is None:
            raise EmulatorError(f"no branch targets for `{ins.text}`", ins.line)
        index = self.frame.read(ins.operands[0], TYPES["u32"], ins)
        goes, left = [], active.mask.copy()
        for k, label in enumerate(table):
            chosen = left & (index == k)
            if chosen.any():
                goes.append((self.function.labels[label], self._joined(chosen)))
                left &= ~chosen
        if left.any():
            raise self.frame.fail(ins, f"an index outside the {len(table)} targets", int(np.flatnonzero(left)[0]))
        return goes

    def _leave(self, active: Active) -> None:
        self.live &= ~active.mask
        self.count -= active.count
        for place, group in self.barriers.left(self.live):
            self._add(place, group)

    def _stuck(self) -> EmulatorError:
        if self.parked:
            at, group = next(iter(self.parked.items()))
            return self.frame.fail(
                self.code[at], "a warp never comes together here: other lanes went another way", int(group.indices()[0])
            )
        return self.barriers.stuck()


def _everybody(members: np.ndarray | None) -> bool:
    """Whether a membermask is the literal of all lanes, or is not given."""
    return members is None or (members.strides == (0,) and members[0] == 0xFFFFFFFF)


def _bits(mask: np.ndarray) -> np.ndarray:
    return np.packbits(mask.reshape(-1, WARP), axis=1, bitorder="little").view(np.uint32)[:, 0]

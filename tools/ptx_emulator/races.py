"""Finds races in shared memory, and, where asked, reads of what nobody has written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.ptx_emulator.access import Access
from tools.ptx_emulator.frame import WARP, Frame

NOBODY, SEVERAL, ATOMIC = -1, -2, -3


class RaceFinder:
    """Notes for every byte of shared memory who wrote and who read it since the block's last barrier.

    Two warps that touch a byte between the same two barriers, one of them writing, race. A barrier of some of a
    block's warps counts for all of them: races of the others across it are not seen. Atomics race with what is not
    atomic only. With `lanes`, lanes of one warp race in the same way between its bar.warp.sync; without, a warp is
    taken to run in step.
    """

    def __init__(self, frame: Frame, unwritten: bool, lanes: bool) -> None:
        self.frame, self.unwritten, self.lanes = frame, unwritten, lanes
        size = frame.shared.data.size
        self.warp = np.arange(frame.threads) // WARP
        self.epoch = np.zeros(frame.shape.blocks, np.int64)
        self.warp_epoch = np.zeros(frame.threads // WARP, np.int64)
        self.known = np.empty(size, bool)
        self.writes, self.reads = _Touches(size), _Touches(size)

    def reset(self) -> None:
        """Nothing has been touched."""
        self.epoch.fill(0)
        self.warp_epoch.fill(0)
        self.known.fill(False)
        self.writes.reset()
        self.reads.reset()

    def barrier(self, blocks: np.ndarray) -> None:
        """The marked blocks have passed a barrier."""
        self.epoch[blocks] += 1

    def warp_barrier(self, threads: np.ndarray) -> None:
        """The warps of these threads have passed a bar.warp.sync."""
        self.warp_epoch[np.unique(self.warp[threads])] += 1

    def touch(self, access: Access, index: np.ndarray, lanes: slice | np.ndarray) -> None:
        """Checks and notes an access; raises EmulatorError for a race or an uninitialised read."""
        places = (index * access.item)[:, None] + np.arange(access.width)
        numbers = np.arange(self.frame.threads) if isinstance(lanes, slice) else lanes
        who = self._who(numbers)
        verb = "writes" if access.writes else "reads"
        others = self._others(self.writes, places, who)
        if access.atomic:
            others &= self.writes.warp[places] != ATOMIC
        self._check(access, others, numbers, f"{verb} shared memory that another {{}} has just written", places)
        if self.unwritten and (access.atomic or not access.writes):
            self._check(access, ~self.known[places], numbers, "reads shared memory that nobody has written", places)
        if not access.writes:
            self.reads.note(places, who, keeps=True)
            return
        others = self._others(self.reads, places, who)
        self._check(access, others, numbers, "writes shared memory that another {} has just read", places)
        self._note_write(places, who, access.atomic)
        if not access.atomic:
            # Lanes of one warp may store the same value to one place in one instruction: that is no race.
            together = self.writes.warp[places] != who.warp
            self._check(access, together, numbers, "two warps write one place", places)

    def written(self, places: np.ndarray, lanes: np.ndarray) -> None:
        """Asynchronous copies of `lanes` have filled `places`, [lanes, bytes]."""
        self._note_write(places, self._who(lanes), False)

    # ---------------------------------------------------------------- parts
    def _who(self, numbers: np.ndarray) -> _Who:
        warp = self.warp[numbers]
        epoch = self.epoch[self.frame.block_of[numbers]]
        return _Who(numbers[:, None], warp[:, None], epoch[:, None], self.warp_epoch[warp][:, None])

    def _others(self, before: _Touches, places: np.ndarray, who: _Who) -> np.ndarray:
        """Whether somebody else has touched the places with no barrier since."""
        fresh = before.epoch[places] == who.epoch
        found = fresh & (before.warp[places] != who.warp)
        if self.lanes:
            in_step = fresh & (before.warp[places] == who.warp) & (before.warp_epoch[places] == who.warp_epoch)
            found |= in_step & (before.thread[places] != who.thread)
        return found

    def _note_write(self, places: np.ndarray, who: _Who, atomic: bool) -> None:
        self.known[places] = True
        self.writes.note(places, who, keeps=False)
        if atomic:
            self.writes.warp[places] = ATOMIC

    def _check(self, access: Access, wrong: np.ndarray, numbers: np.ndarray, message: str, places: np.ndarray) -> None:
        if wrong.any():
            row, column = (int(k) for k in np.argwhere(wrong)[0])
            place = int(places[row, column]) % self.frame.shared_stride
            kind = "warp or lane" if self.lanes else "warp"
            told = f"{message.format(kind)} (byte {place}, no barrier between)"
            raise self.frame.fail(access.ins, told, int(numbers[row]))


@dataclass(frozen=True)
class _Who:
    """Threads of an access, [threads, 1]: their numbers, warps, and both kinds of epoch."""

    thread: np.ndarray
    warp: np.ndarray
    epoch: np.ndarray
    warp_epoch: np.ndarray


class _Touches:
    """By byte of the bank: the thread and the warp that touched it last, and when."""

    def __init__(self, size: int) -> None:
        self.thread, self.warp = np.empty(size, np.int32), np.empty(size, np.int32)
        self.epoch, self.warp_epoch = np.empty(size, np.int32), np.empty(size, np.int32)

    def reset(self) -> None:
        for values in (self.thread, self.warp, self.epoch, self.warp_epoch):
            values.fill(NOBODY)

    def note(self, places: np.ndarray, who: _Who, keeps: bool) -> None:
        """`keeps`: touches of others in the same epoch stay known, as several."""
        if not keeps:
            self.thread[places], self.warp[places] = who.thread, who.warp
        else:
            fresh = self.epoch[places] == who.epoch
            same_step = fresh & (self.warp_epoch[places] == who.warp_epoch)
            warp = np.where(fresh & (self.warp[places] != who.warp), SEVERAL, who.warp)
            thread = np.where(same_step & (self.thread[places] != who.thread), SEVERAL, who.thread)
            self.warp[places], self.thread[places] = warp, thread
            # Two that read one byte in this very instruction: the later has taken the earlier's place.
            mixed = (self.warp[places] != warp) & (warp != SEVERAL)
            self.warp[places[mixed]] = SEVERAL
            mixed = (self.thread[places] != thread) & (thread != SEVERAL)
            self.thread[places[mixed]] = SEVERAL
        self.epoch[places], self.warp_epoch[places] = who.epoch, who.warp_epoch

"""Finds races in shared memory, and, where asked, reads of what nobody has written."""

from __future__ import annotations

import numpy as np

from tools.ptx_emulator.access import Access
from tools.ptx_emulator.frame import WARP, Frame

NOBODY, SEVERAL, ATOMIC = -1, -2, -3


class RaceFinder:
    """Notes for every byte of shared memory which warp wrote and which read it since the block's last barrier.

    Two warps that touch a byte between the same two barriers, one of them writing, race. A barrier of some of a
    block's warps counts for all of them: races of the others across it are not seen. Lanes of one warp are not told
    apart. Atomics race with what is not atomic only.
    """

    def __init__(self, frame: Frame, unwritten: bool) -> None:
        self.frame = frame
        self.unwritten = unwritten
        size = frame.shared.data.size
        self.epoch = np.zeros(frame.shape.blocks, np.int64)
        self.written_in, self.read_in = np.empty(size, np.int64), np.empty(size, np.int64)
        self.writer, self.reader = np.empty(size, np.int64), np.empty(size, np.int64)
        self.known = np.empty(size, bool)
        self.warp = np.arange(frame.threads) // WARP

    def reset(self) -> None:
        """Nothing has been touched."""
        self.epoch.fill(0)
        self.written_in.fill(-1)
        self.read_in.fill(-1)
        self.writer.fill(NOBODY)
        self.reader.fill(NOBODY)
        self.known.fill(False)

    def barrier(self, blocks: np.ndarray) -> None:
        """The marked blocks have passed a barrier."""
        self.epoch[blocks] += 1

    def touch(self, access: Access, index: np.ndarray, lanes: slice | np.ndarray) -> None:
        """Checks and notes an access; raises EmulatorError for a race or an uninitialised read."""
        places = (index * access.item)[:, None] + np.arange(access.width)
        numbers = np.arange(self.frame.threads) if isinstance(lanes, slice) else lanes
        epoch = self.epoch[self.frame.block_of[numbers]][:, None]
        warp = self.warp[numbers][:, None]
        self._check_writers(access, places, numbers, epoch, warp)
        if self.unwritten and (access.atomic or not access.writes):
            self._check(access, ~self.known[places], numbers, "reads shared memory that nobody has written", places)
        if access.writes:
            others = (self.read_in[places] == epoch) & (self.reader[places] != warp)
            self._check(access, others, numbers, "writes shared memory that another warp has just read", places)
            self._note_write(places, epoch, ATOMIC if access.atomic else warp)
            if not access.atomic:
                self._check_together(access, places, numbers, warp)
        else:
            several = (self.read_in[places] == epoch) & (self.reader[places] != warp)
            self.reader[places] = np.where(several, SEVERAL, warp)
            self._check_readers(places, warp)
            self.read_in[places] = epoch

    def written(self, places: np.ndarray, lanes: np.ndarray) -> None:
        """Asynchronous copies of `lanes` have filled `places`, [lanes, bytes]."""
        self._note_write(places, self.epoch[self.frame.block_of[lanes]][:, None], self.warp[lanes][:, None])

    # ---------------------------------------------------------------- parts
    def _check_writers(
        self, access: Access, places: np.ndarray, numbers: np.ndarray, epoch: np.ndarray, warp: np.ndarray
    ) -> None:
        writer = self.writer[places]
        others = (self.written_in[places] == epoch) & (writer != warp)
        if access.atomic:
            others &= writer != ATOMIC
        verb = "writes" if access.writes else "reads"
        self._check(access, others, numbers, f"{verb} shared memory that another warp has just written", places)

    def _note_write(self, places: np.ndarray, epoch: np.ndarray, who: np.ndarray | int) -> None:
        self.known[places] = True
        self.writer[places] = who
        self.written_in[places] = epoch

    def _check_together(self, access: Access, places: np.ndarray, numbers: np.ndarray, warp: np.ndarray) -> None:
        """Two warps that write one byte in this very instruction: the later has taken the earlier's place."""
        self._check(access, self.writer[places] != warp, numbers, "two warps write one place", places)

    def _check_readers(self, places: np.ndarray, warp: np.ndarray) -> None:
        """Two warps that read one byte in this instruction are several."""
        mixed = (self.reader[places] != warp) & (self.reader[places] != SEVERAL)
        self.reader[places[mixed]] = SEVERAL

    def _check(self, access: Access, wrong: np.ndarray, numbers: np.ndarray, message: str, places: np.ndarray) -> None:
        if wrong.any():
            row, column = (int(k) for k in np.argwhere(wrong)[0])
            place = int(places[row, column]) % self.frame.shared_stride
            raise self.frame.fail(access.ins, f"{message} (byte {place}, no barrier between)", int(numbers[row]))

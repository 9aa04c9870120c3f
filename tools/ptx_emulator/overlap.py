"""Finds what a launch does too early: before it has waited for the launch before it, beside which it may begin."""

from __future__ import annotations

import numpy as np

from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.frame import Active, Frame
from tools.ptx_emulator.syntax import Instruction

_WORD_LOG = 2


class Overlap:
    """What one launch reaches of global memory, in words of four bytes.

    A launch that begins beside the one before it must not, until its thread has executed `griddepcontrol.wait`, read
    what that one writes, nor write what that one reads or writes; it must wait before it lets the next launch begin;
    and some thread of it must wait, or the next one, which waits for this alone, would not wait for all before it.

    Args:
        before: the launch beside which this one may begin; None where it begins behind all others.
    """

    def __init__(self, before: Overlap | None = None) -> None:
        self._before = before
        self._reads: list[np.ndarray] = []
        self._writes: list[np.ndarray] = []
        self._early = before is not None
        self._has_waited = False
        self._waited = np.zeros(0, bool)

    def begin(self, frame: Frame) -> None:
        """Other blocks begin."""
        self._waited = np.zeros(frame.threads, bool)

    def wait(self, active: Active) -> None:
        """The threads have waited."""
        self._waited[active.lanes] = True
        self._has_waited = True

    def let_next(self, ins: Instruction, frame: Frame, active: Active) -> None:
        """The threads let the next launch begin."""
        early = active.indices()[~self._waited[active.lanes]]
        if self._early and early.size:
            raise frame.fail(ins, "lets the next launch begin before it has waited for the one before", int(early[0]))

    def reached(
        self,
        ins: Instruction,
        frame: Frame,
        addresses: np.ndarray,
        width: int,
        lanes: slice | np.ndarray,
        writes: bool,
        atomic: bool,
    ) -> None:
        """The threads are about to reach `width` bytes each."""
        words = (addresses[:, None] + np.arange(0, width, 1 << _WORD_LOG)) >> _WORD_LOG
        if self._before is not None:
            early = ~self._waited[lanes]
            taken = self._before.written if not writes else self._before.touched
            wrong = np.isin(words, taken).any(axis=1) & early if early.any() and taken.size else early & False
            if wrong.any():
                thread = int(np.arange(frame.threads)[lanes][wrong][0])
                verb = "writes what" if writes else "reads what"
                told = f"{verb} the launch before reaches, without having waited for it"
                raise frame.fail(ins, told, thread, int(addresses[wrong][0]))
        if writes:
            self._writes.append(np.unique(words))
        if atomic or not writes:
            self._reads.append(np.unique(words))

    @property
    def written(self) -> np.ndarray:
        """Words that the launch has written, ascending."""
        self._writes = [_together(self._writes)]
        return self._writes[0]

    @property
    def touched(self) -> np.ndarray:
        """Words that it has written or read, ascending."""
        self._reads = [_together(self._reads)]
        return _together([self.written, self._reads[0]])

    def end(self, name: str) -> None:
        """The launch is over; what the one before it did counts no more."""
        if self._early and not self._has_waited:
            raise EmulatorError(f"{name} begins beside the launch before it and never waits for it")
        self._before = None


def _together(parts: list[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.empty(0, np.int64), *parts]))

"""Where the threads of a load or store reach: checked addresses as indices into numpy arrays."""

from __future__ import annotations

import numpy as np

from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.frame import Active, Frame
from tools.ptx_emulator.memory import LOCAL_WINDOW, SHARED_WINDOW, WINDOW_BYTES, Allocation
from tools.ptx_emulator.syntax import Address, Immediate, Instruction, Register, Symbol
from tools.ptx_emulator.types import TYPES

SPACES = ("global", "shared", "local", "const", "param")
Piece = tuple[np.ndarray, np.ndarray, "slice | np.ndarray"]


def space_of(ins: Instruction) -> str:
    """The state space that an opcode names; generic when it names none."""
    return next((part.split("::")[0] for part in ins.parts if part.split("::")[0] in SPACES), "generic")


class Access:
    """One address operand that reaches `width` bytes in items of `item` bytes."""

    def __init__(
        self,
        ins: Instruction,
        frame: Frame,
        operand: object,
        space: str,
        item: int,
        width: int,
        writes: bool = False,
        atomic: bool = False,
    ) -> None:
        if not isinstance(operand, Address):
            raise EmulatorError(f"`{ins.text}` needs an address", ins.line)
        self.ins, self.frame = ins, frame
        self.item, self.width, self.writes, self.atomic = item, width, writes, atomic
        self.shift = item.bit_length() - 1
        self.offset = operand.offset
        base: object = operand.base if operand.base is not None else Immediate(0)
        if isinstance(base, Symbol):
            kind = frame.symbols.get(base.name, ("", 0))[0]
            space = kind if space == "param" else space
        if isinstance(base, Register):
            of = TYPES[f"u{base.bits}"]
            self.base = frame.read(base, of, ins)
        else:
            self.base = frame.read(base, TYPES["u64"], ins)
        self.space = "global" if space == "const" else space
        self._last: Allocation | None = None

    def pieces(self, active: Active) -> list[Piece]:
        """[(view, item index of the first item a thread, lanes)]; raises for what a device would fault at."""
        lanes = active.lanes
        addresses = self.base[lanes].astype(np.int64)
        if self.offset:
            addresses += self.offset
        if self.space == "global":
            return self._global(addresses, lanes, active)
        if self.space == "generic":
            return self._generic(addresses, lanes, active)
        return [self._window(addresses, lanes, active, self.space)]

    def _generic(self, addresses: np.ndarray, lanes: slice | np.ndarray, active: Active) -> list[Piece]:
        low, high = int(addresses.min()), int(addresses.max())
        if low >= 0 and high < SHARED_WINDOW:
            return self._global(addresses, lanes, active)
        found: list[Piece] = []
        indices = active.indices()
        for space, window in (("shared", SHARED_WINDOW), ("local", LOCAL_WINDOW)):
            inside = (addresses >= window) & (addresses < window + WINDOW_BYTES)
            if inside.all():
                return [self._window(addresses - window, lanes, active, space)]
            if inside.any():
                found.append(self._window(addresses[inside] - window, indices[inside], active, space))
        outside = (addresses < SHARED_WINDOW) | (addresses >= LOCAL_WINDOW + WINDOW_BYTES)
        if outside.any():
            found += self._global(addresses[outside], indices[outside], active)
        return found

    def _window(self, addresses: np.ndarray, lanes: slice | np.ndarray, active: Active, space: str) -> Piece:
        """Shared memory of the thread's block, or local memory of the thread."""
        frame = self.frame
        size = frame.shared_bytes if space == "shared" else frame.local_bytes
        wrong = (addresses < 0) | (addresses > size - self.width) if self._outside(addresses, size) else None
        if wrong is not None:
            self._fail(f"{self.width} bytes outside the {size} bytes of {space} memory", addresses, lanes, wrong)
        self._check_alignment(addresses, lanes)
        start = frame.shared_start if space == "shared" else frame.local_start
        bank = frame.shared if space == "shared" else frame.local
        if space == "shared" and frame.meter is not None:
            frame.meter.reached_shared(self, addresses, lanes, frame)
        index = (addresses + start[lanes]) >> self.shift
        if space == "shared":
            if frame.copies is not None:
                frame.copies.check(self, index, lanes)
            if frame.watch is not None:
                frame.watch.touch(self, index, lanes)
        return bank.views[self.item], index, lanes

    def _outside(self, addresses: np.ndarray, size: int) -> bool:
        return int(addresses.min()) < 0 or int(addresses.max()) + self.width > size

    def _check_alignment(self, addresses: np.ndarray, lanes: slice | np.ndarray) -> None:
        if self.width > 1:
            wrong = (addresses & (self.width - 1)).astype(bool)
            if wrong.any():
                self._fail(f"not aligned to {self.width} bytes", addresses, lanes, wrong)

    def _fail(self, message: str, addresses: np.ndarray, lanes: slice | np.ndarray, wrong: np.ndarray) -> None:
        first = int(np.flatnonzero(wrong)[0])
        thread = first if isinstance(lanes, slice) else int(lanes[first])
        raise self.frame.fail(self.ins, message, thread, int(addresses[first]))

    def _global(self, addresses: np.ndarray, lanes: slice | np.ndarray, active: Active) -> list[Piece]:
        low, high = int(addresses.min()), int(addresses.max())
        held = self._last
        if held is None or not held.live or low < held.base or high + self.width > held.end:
            held = self.frame.memory.find(low, self.width)
            if held is None or high + self.width > held.end:
                return self._scattered(addresses, lanes, active)
            self._last = held
        return [self._in(held, addresses, lanes)]

    def _in(self, held: Allocation, addresses: np.ndarray, lanes: slice | np.ndarray) -> Piece:
        self._check_alignment(addresses, lanes)
        if self.writes and not held.writable:
            self._fail(f"a store to {held.name}, which is read-only", addresses, lanes, np.ones(addresses.size, bool))
        if self.frame.meter is not None:
            self.frame.meter.reached_global(self, addresses, lanes, self.frame)
        if self.frame.overlap is not None:
            ways = (self.writes, self.atomic)
            self.frame.overlap.reached(self.ins, self.frame, addresses, self.width, lanes, *ways)
        return held.views[self.item], (addresses - held.base) >> self.shift, lanes

    def _scattered(self, addresses: np.ndarray, lanes: slice | np.ndarray, active: Active) -> list[Piece]:
        """Threads of one instruction that reach into several allocations."""
        numbers = active.indices() if isinstance(lanes, slice) else lanes
        left = np.arange(addresses.size)
        found = []
        while left.size:
            first = int(addresses[left[0]])
            held = self.frame.memory.find(first, self.width)
            if held is None:
                wrong = np.arange(addresses.size) == left[0]
                where = self.frame.memory.describe(first)
                self._fail(f"{self.width} bytes outside every allocation ({where})", addresses, lanes, wrong)
            inside = (addresses[left] >= held.base) & (addresses[left] + self.width <= held.end)
            here = left[inside]
            found.append(self._in(held, addresses[here], numbers[here]))
            left = left[~inside]
        return found

"""The state of the blocks that run together: registers, special registers, shared and local memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.memory import Memory
from tools.ptx_emulator.syntax import Immediate, Instruction, Negated, Operand, Register, Special, Symbol
from tools.ptx_emulator.types import UNSIGNED, PtxType, widened

WARP = 32


class Active:
    """The threads that execute an instruction.

    `lanes` indexes the frame's arrays (a slice when it is every lane), `mask` marks them. `full` says that they are
    all that still run: what has no side effects may then be computed for all lanes, which is faster.
    """

    __slots__ = ("_lanes", "count", "full", "mask")

    def __init__(self, mask: np.ndarray, full: bool = False) -> None:
        self.mask = mask
        self.full = full
        self.count = int(np.count_nonzero(mask))
        self._lanes: slice | np.ndarray | None = slice(None) if self.count == mask.size else None

    @property
    def lanes(self) -> slice | np.ndarray:
        if self._lanes is None:
            self._lanes = np.flatnonzero(self.mask)
        return self._lanes

    def select(self, chosen: np.ndarray) -> Active | None:
        """Those of them that `chosen` marks; itself when all are, None when none is."""
        mask = self.mask & chosen
        count = int(np.count_nonzero(mask))
        if count == self.count:
            return self
        return Active(mask) if count else None

    def indices(self) -> np.ndarray:
        """Their lanes as numbers."""
        return np.arange(self.mask.size) if isinstance(self.lanes, slice) else self.lanes


@dataclass(frozen=True)
class Shape:
    """A batch of blocks: block dimensions, how many blocks, and the lanes a block takes (whole warps)."""

    block: tuple[int, int, int]
    blocks: int

    @property
    def threads(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def lanes(self) -> int:
        return -(-self.threads // WARP) * WARP


class Frame:
    """Arrays of one value a thread, over all threads of the batch, blocks one after the other in whole warps."""

    def __init__(self, shape: Shape, slots: dict[Register, int], memory: Memory, sizes: tuple[int, int]) -> None:
        self.shape = shape
        self.memory = memory
        self.threads = shape.blocks * shape.lanes
        self.block_of = np.repeat(np.arange(shape.blocks), shape.lanes)
        self.symbols: dict[str, tuple[str, int]] = {}
        self.parameters = np.zeros(0, np.uint8)
        self.watch: Watch | None = None
        self.copies: Copies | None = None
        self.meter: Meter | None = None
        self.overlap: Overlapping | None = None
        self.rough = False
        self.values: dict[Register, np.ndarray] = {}
        self.carry = np.zeros(self.threads, np.uint64)
        self._store: list[np.ndarray] = []
        for bits in sorted({register.bits for register in slots}):
            self._allocate({register: slot for register, slot in slots.items() if register.bits == bits}, bits)
        thread = np.tile(np.arange(shape.lanes), shape.blocks)
        self.real = thread < shape.threads
        self.start = Active(self.real, full=True)
        self.special: dict[str, np.ndarray] = {}
        self._special(thread)
        shared_bytes, local_bytes = sizes
        self.shared_bytes = shared_bytes
        self.shared_stride = -(-max(shared_bytes, 1) // 16) * 16
        self.shared = Bank(shape.blocks * self.shared_stride)
        self.shared_start = self.block_of * self.shared_stride
        self.local_bytes = local_bytes
        self.local_stride = -(-max(local_bytes, 1) // 16) * 16
        self.local = Bank(self.threads * self.local_stride if local_bytes else 0)
        self.local_start = np.arange(self.threads) * self.local_stride

    def _allocate(self, slots: dict[Register, int], bits: int) -> None:
        rows = max(slots.values()) + 1
        if bits == 1:
            store = np.zeros((rows, self.threads), bool)
        elif bits in UNSIGNED:
            store = np.zeros((rows, self.threads), UNSIGNED[bits])
        else:
            raise EmulatorError(f"registers of {bits} bits are not known: {next(iter(slots)).name}")
        self._store.append(store)
        for register, slot in slots.items():
            self.values[register] = store[slot]

    def _special(self, thread: np.ndarray) -> None:
        x, y, _ = self.shape.block
        fixed = {
            "%tid.x": thread % x,
            "%tid.y": thread // x % y,
            "%tid.z": thread // (x * y),
            "%laneid": thread % WARP,
            "%warpid": thread // WARP,
            "%nwarpid": np.full(self.threads, self.shape.lanes // WARP),
            "WARP_SZ": np.full(self.threads, WARP),
        }
        one = np.uint64(1) << (thread % WARP).astype(np.uint64)
        fixed |= {
            "%lanemask_eq": one,
            "%lanemask_lt": one - np.uint64(1),
            "%lanemask_le": one * np.uint64(2) - np.uint64(1),
            "%lanemask_gt": np.uint64(0xFFFFFFFF) - (one * np.uint64(2) - np.uint64(1)),
            "%lanemask_ge": np.uint64(0xFFFFFFFF) - (one - np.uint64(1)),
        }
        fixed |= {f"%ntid.{axis}": np.full(self.threads, self.shape.block[k]) for k, axis in enumerate("xyz")}
        changing = [f"%{name}.{axis}" for name in ("ctaid", "nctaid") for axis in "xyz"]
        changing += ["%smid", "%nsmid", "%gridid", "%clock", "%total_smem_size", "%dynamic_smem_size"]
        self.special = {name: values.astype(np.uint32) for name, values in fixed.items()}
        self.special |= {name: np.zeros(self.threads, np.uint32) for name in changing}
        self.special |= {name: np.zeros(self.threads, np.uint64) for name in ("%clock64", "%globaltimer")}

    def begin(self, grid: tuple[int, int, int], first_block: int, parameters: np.ndarray) -> None:
        """Resets everything for the blocks from `first_block` on; memory and registers are poisoned."""
        block = self.block_of + first_block
        self.special["%ctaid.x"][:] = block % grid[0]
        self.special["%ctaid.y"][:] = block // grid[0] % grid[1]
        self.special["%ctaid.z"][:] = block // (grid[0] * grid[1])
        for k, axis in enumerate("xyz"):
            self.special[f"%nctaid.{axis}"][:] = grid[k]
        self.special["%smid"][:] = block % 16
        self.special["%nsmid"][:] = 16
        self.special["%total_smem_size"][:] = self.shared_bytes
        for store in self._store:
            store.fill(np.invert(store.dtype.type(0)) if store.dtype != bool else False)
        self.shared.data.fill(0xFF)
        self.local.data.fill(0xFF)
        self.parameters = parameters
        for one in (self.copies, self.watch):
            if one is not None:
                one.reset()
        if self.overlap is not None:
            self.overlap.begin(self)

    @property
    def bytes(self) -> int:
        """What the arrays take, roughly."""
        return sum(store.nbytes for store in self._store) + self.shared.data.nbytes + self.local.data.nbytes

    # ---------------------------------------------------------------- operands
    def read(self, operand: Operand | None, of: PtxType, ins: Instruction) -> np.ndarray:
        """The operand's values as `of.dtype`, one a thread; a view, so it follows the register."""
        if isinstance(operand, Register):
            return self._as(self.values[operand], of, ins)
        if isinstance(operand, Negated):
            raise EmulatorError(f"a negated predicate in `{ins.text}`", ins.line)
        if isinstance(operand, Special):
            return self._as(self.special[operand.name], of, ins)
        if isinstance(operand, Immediate):
            return np.broadcast_to(literal(operand, of), self.threads)
        if isinstance(operand, Symbol):
            return np.broadcast_to(of.dtype.type(self.address_of(operand.name, ins)), self.threads)
        raise EmulatorError(f"cannot read an operand of `{ins.text}`", ins.line)

    def _as(self, values: np.ndarray, of: PtxType, ins: Instruction) -> np.ndarray:
        if of.kind == "p" or values.dtype == bool:
            if values.dtype != bool or of.kind != "p":
                raise EmulatorError(f"a predicate and a .{of.name} do not mix in `{ins.text}`", ins.line)
            return values
        if values.itemsize < of.bytes:
            raise EmulatorError(f"a register narrower than .{of.name} in `{ins.text}`", ins.line)
        return values.view(of.dtype)[:: values.itemsize // of.bytes]

    def write(self, operand: Operand | None, of: PtxType, ins: Instruction) -> np.ndarray:
        """The register's array, as wide as the register and of `of`'s kind: storing to it extends the value."""
        if operand is None:
            return np.zeros(self.threads, of.dtype)
        if not isinstance(operand, Register):
            raise EmulatorError(f"the destination of `{ins.text}` is no register", ins.line)
        values = self.values[operand]
        if of.kind == "p" or values.dtype == bool:
            return self._as(values, of, ins)
        if values.itemsize == of.bytes:
            return values.view(of.dtype)
        if values.itemsize < of.bytes or of.kind == "f":
            raise EmulatorError(f"a .{of.name} does not fit the destination of `{ins.text}`", ins.line)
        return values.view(widened(of, 8 * values.itemsize).dtype)

    def predicate(self, operand: Operand | None, ins: Instruction) -> tuple[np.ndarray, bool]:
        """A predicate operand's array and whether it is to be negated."""
        if isinstance(operand, Negated):
            return self.predicate(operand.register, ins)[0], True
        if isinstance(operand, Immediate):
            return np.broadcast_to(np.bool_(operand.value), self.threads), False
        if not isinstance(operand, Register) or operand.bits != 1:
            raise EmulatorError(f"`{ins.text}` needs a predicate", ins.line)
        return self.values[operand], False

    def address_of(self, name: str, ins: Instruction) -> int:
        if name not in self.symbols:
            raise EmulatorError(f"{name} is not declared: `{ins.text}`", ins.line)
        return self.symbols[name][1]

    # ---------------------------------------------------------------- errors
    def fail(
        self, ins: Instruction, message: str, thread: int | None = None, address: int | None = None
    ) -> EmulatorError:
        """The error for `ins`, with the coordinates of the frame's `thread`."""
        where = None
        if thread is not None:
            special = self.special
            where = tuple(tuple(int(special[f"%{name}.{axis}"][thread]) for axis in "xyz") for name in ("ctaid", "tid"))
        return EmulatorError(f"`{ins.text}`: {message}", ins.line, where, address)


class Watch(Protocol):
    """Sees every access to shared memory."""

    def reset(self) -> None:
        """Forgets everything: other blocks begin."""

    def touch(self, access: object, index: np.ndarray, lanes: slice | np.ndarray) -> None:
        """`access` is about to reach the items at `index`."""

    def written(self, places: np.ndarray, lanes: np.ndarray) -> None:
        """Copies of the threads in `lanes` have filled the bytes at `places`."""

    def barrier(self, blocks: np.ndarray) -> None:
        """The marked blocks have passed a barrier."""

    def warp_barrier(self, threads: np.ndarray) -> None:
        """The warps of these threads have passed a bar.warp.sync."""


class Meter(Protocol):
    """Counts what is executed and reached."""

    def executed(self, ins: Instruction, active: Active) -> None:
        """The threads are about to execute `ins`."""

    def reached_global(self, access: object, addresses: np.ndarray, lanes: slice | np.ndarray, frame: Frame) -> None:
        """They reach these addresses of global memory."""

    def reached_shared(self, access: object, addresses: np.ndarray, lanes: slice | np.ndarray, frame: Frame) -> None:
        """They reach these addresses of their blocks' shared memory."""


class Overlapping(Protocol):
    """Sees what a launch reaches that may begin beside the one before it; see `overlap.py`."""

    def begin(self, frame: Frame) -> None:
        """Other blocks begin."""

    def wait(self, active: Active) -> None:
        """The threads have waited for the launch before."""

    def let_next(self, ins: Instruction, frame: Frame, active: Active) -> None:
        """The threads let the next launch begin."""

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
        """The threads are about to reach `width` bytes of global memory each."""


class Copies(Protocol):
    """The asynchronous copies on their way to shared memory."""

    def reset(self) -> None:
        """Forgets them all."""

    def check(self, access: object, index: np.ndarray, lanes: slice | np.ndarray) -> None:
        """Raises when an access reaches what a copy is still filling."""


class Bank:
    """Shared or local memory of all blocks or threads of a frame, with its views by item size."""

    def __init__(self, size: int) -> None:
        self.data = np.empty(size, np.uint8)
        self.views = {item: self.data.view(f"u{item}") if size else self.data for item in (1, 2, 4, 8)}


def literal(operand: Immediate, of: PtxType) -> np.generic:
    """A literal as a scalar of `of`."""
    if of.kind == "p":
        return np.bool_(operand.value)
    if operand.float_bits and of.kind == "f":
        value = UNSIGNED[operand.float_bits].type(operand.value).view(f"f{operand.float_bits // 8}")
        return of.dtype.type(value)
    if of.kind == "f":
        return of.dtype.type(operand.value)
    bits = UNSIGNED[of.bits].type(operand.value & ((1 << of.bits) - 1))
    return bits.view(of.dtype)

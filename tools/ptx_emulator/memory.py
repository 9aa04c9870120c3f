"""Device memory: allocations at device addresses with unmapped gaps between them."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from tools.ptx_emulator.errors import EmulatorError

ALIGNMENT = 256
GUARD_BYTES = 4096
FIRST_ADDRESS = 0x7_0000_0000
# Windows of the generic address space that are no global memory.
SHARED_WINDOW = 1 << 44
LOCAL_WINDOW = 1 << 45
WINDOW_BYTES = 1 << 32


class Allocation:
    """`size` bytes at `base`. `data` is uint8; `views` holds it as unsigned integers of 1, 2, 4 and 8 bytes."""

    __slots__ = ("base", "data", "end", "live", "name", "size", "views", "writable")

    def __init__(self, base: int, data: np.ndarray, name: str, writable: bool) -> None:
        self.base = base
        self.size = data.size
        self.end = base + data.size
        self.data = data
        self.name = name
        self.live = True
        self.writable = writable
        self.views = {1: data}
        for item in (2, 4, 8):
            self.views[item] = data[: data.size // item * item].view(f"u{item}")


class Memory:
    """The allocations of one device, found by address."""

    def __init__(self) -> None:
        self._next = FIRST_ADDRESS
        self._bases: list[int] = []
        self._allocations: list[Allocation] = []

    def allocate(self, size: int, name: str = "memory", poison: int = 0xFF) -> int:
        """The address of `size` new bytes, all `poison` (0xFF makes NaN of every float type)."""
        return self.bind(np.full(size, poison, np.uint8), name)

    def bind(self, array: np.ndarray, name: str = "array") -> int:
        """The address at which `array` (C-contiguous) lies until `free`, without a copy. Read-only stays so."""
        if not array.flags.c_contiguous:
            raise EmulatorError(f"{name}: an array bound to device memory must be C-contiguous")
        data = np.frombuffer(memoryview(array).cast("B"), np.uint8) if array.size else np.empty(0, np.uint8)
        base = self._next
        self._next += -(-max(data.size, 1) // ALIGNMENT) * ALIGNMENT + GUARD_BYTES
        self._bases.append(base)
        self._allocations.append(Allocation(base, data, name, array.flags.writeable))
        return base

    def free(self, address: int) -> None:
        """Unmaps what begins at `address`; EmulatorError when nothing does."""
        at = bisect_right(self._bases, address) - 1
        if at < 0 or self._bases[at] != address:
            raise EmulatorError("nothing to free begins here", address=address)
        self._allocations[at].live = False
        del self._bases[at], self._allocations[at]

    def find(self, address: int, size: int = 1) -> Allocation | None:
        """The allocation that holds all of [address, address + size), or None."""
        at = bisect_right(self._bases, address) - 1
        if at < 0 or address + size > self._allocations[at].end:
            return None
        return self._allocations[at]

    def read(self, address: int, size: int) -> np.ndarray:
        """A view of `size` bytes; EmulatorError when they are not all in one allocation."""
        found = self.find(address, size)
        if found is None:
            raise EmulatorError(f"no {size} bytes of device memory", address=address)
        return found.data[address - found.base : address - found.base + size]

    def describe(self, address: int) -> str:
        """What lies nearest below `address`, for messages."""
        at = bisect_right(self._bases, address) - 1
        if at < 0:
            return "below all memory"
        found = self._allocations[at]
        return f"{address - found.base} bytes into {found.name!r} of {found.size}"

    def __len__(self) -> int:
        return len(self._allocations)

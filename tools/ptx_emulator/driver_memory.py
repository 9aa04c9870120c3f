"""The fake driver's memory: device allocations, page-locked host memory, copies."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from tools.ptx_emulator.driver_state import (
    INVALID_VALUE,
    OUT_OF_MEMORY,
    DriverError,
    State,
    driver_function,
    number_of,
    put,
)
from tools.ptx_emulator.driver_work import Work
from tools.ptx_emulator.errors import EmulatorError

POISON = 0xFF
GRANULE = 512


class MemoryCalls(State):
    """cuMem*. Fresh memory is poisoned: every float in it is NaN."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._host: dict[int, tuple[np.ndarray, int]] = {}
        # Kept, so that what still uses freed memory finds poison and not somebody else's.
        self._freed: list[np.ndarray] = []

    # ---------------------------------------------------------------- allocations
    @driver_function
    def cuMemGetInfo_v2(self, free: Any, total: Any) -> None:
        device = self.device
        put(free, device.model.total_bytes - device.used_bytes)
        put(total, device.model.total_bytes)

    @driver_function
    def cuMemAlloc_v2(self, address: Any, size: int) -> int | None:
        device, size = self.device, number_of(size)
        if size == 0:
            return INVALID_VALUE
        rounded = -(-size // GRANULE) * GRANULE
        if device.used_bytes + rounded > device.model.total_bytes:
            return OUT_OF_MEMORY
        device.used_bytes += rounded
        put(address, device.memory.allocate(size, f"cuMemAlloc of {size}"))
        return None

    @driver_function
    def cuMemFree_v2(self, address: int) -> int | None:
        """Frees once the device has come to rest, as the driver does."""
        device, number = self.device, number_of(address)
        if not number:
            return None
        self.finish_all()
        found = device.memory.find(number)
        if found is None or found.base != number:
            return INVALID_VALUE
        device.used_bytes -= -(-found.size // GRANULE) * GRANULE
        device.memory.free(number)
        return None

    @driver_function
    def cuMemHostAlloc(self, address: Any, size: int, flags: int) -> int | None:
        """Page-locked memory; its device address is another than its host address, so that none is taken for both."""
        size = number_of(size)
        if size == 0 or number_of(flags) & ~0x7:
            return INVALID_VALUE
        array = np.full(size, POISON, np.uint8)
        host = array.ctypes.data
        self._host[host] = (array, self.device.memory.bind(array, f"cuMemHostAlloc of {size}"))
        put(address, host)
        return None

    @driver_function
    def cuMemHostGetDevicePointer_v2(self, address: Any, host: int, flags: int) -> int | None:
        found = self._locked(number_of(host))
        if found is None:
            return INVALID_VALUE
        base, device_address = found
        put(address, device_address + number_of(host) - base)
        return None

    @driver_function
    def cuMemFreeHost(self, host: int) -> int | None:
        if number_of(host) not in self._host:
            return INVALID_VALUE
        self.finish_all()
        array, address = self._host.pop(number_of(host))
        array.fill(POISON)
        self._freed.append(array)
        for device in self.devices:
            if device.memory.find(address) is not None:
                device.memory.free(address)
        return None

    def _locked(self, host: int) -> tuple[int, int] | None:
        """(host address, device address) of the page-locked memory that holds `host`."""
        for base, (array, address) in self._host.items():
            if base <= host < base + array.size:
                return base, address
        return None

    # ---------------------------------------------------------------- copies
    def _host_bytes(self, address: int, size: int) -> np.ndarray:
        """The process's memory at `address`; DriverError for page-locked memory that was freed."""
        if any(array.ctypes.data <= address < array.ctypes.data + array.size for array in self._freed):
            raise DriverError(INVALID_VALUE)
        return host_bytes(address, size)

    def _bytes(self, address: int, size: int) -> np.ndarray:
        try:
            return self.device.memory.read(address, size)
        except EmulatorError:
            raise DriverError(INVALID_VALUE) from None

    @driver_function
    def cuMemcpyHtoDAsync_v2(self, target: int, source: int, size: int, stream: int) -> None:
        """Page-locked memory is read when the stream comes to it; other memory is staged now."""
        host, size = number_of(source), number_of(size)
        into = self._bytes(number_of(target), size)
        data = self._host_bytes(host, size)
        if self._locked(host) is None and not self.capturing(stream):
            data = data.copy()
        self.enqueue(stream, Work("copy", lambda: np.copyto(into, data)))

    @driver_function
    def cuMemcpyDtoHAsync_v2(self, target: int, source: int, size: int, stream: int) -> None:
        """Into page-locked memory when the stream comes to it; into other memory before this returns."""
        host, size = number_of(target), number_of(size)
        data = self._bytes(number_of(source), size)
        into = self._host_bytes(host, size)
        self.enqueue(stream, Work("copy", lambda: np.copyto(into, data)))
        if self._locked(host) is None and not self.capturing(stream):
            self.finish(stream)

    @driver_function
    def cuMemcpyDtoDAsync_v2(self, target: int, source: int, size: int, stream: int) -> None:
        size = number_of(size)
        into, data = self._bytes(number_of(target), size), self._bytes(number_of(source), size)
        self.enqueue(stream, Work("copy", lambda: np.copyto(into, data.copy())))

    @driver_function
    def cuMemcpyHtoD_v2(self, target: int, source: int, size: int) -> None:
        self.finish_all()
        self._bytes(number_of(target), number_of(size))[:] = self._host_bytes(number_of(source), number_of(size))

    @driver_function
    def cuMemcpyDtoH_v2(self, target: int, source: int, size: int) -> None:
        self.finish_all()
        self._host_bytes(number_of(target), number_of(size))[:] = self._bytes(number_of(source), number_of(size))

    @driver_function
    def cuMemsetD8Async(self, target: int, value: int, size: int, stream: int) -> None:
        into, byte = self._bytes(number_of(target), number_of(size)), number_of(value) & 0xFF
        self.enqueue(stream, Work("fill", lambda: into.fill(byte)))

    @driver_function
    def cuMemsetD32Async(self, target: int, value: int, count: int, stream: int) -> int | None:
        if number_of(target) % 4:
            return INVALID_VALUE
        into, word = self._bytes(number_of(target), 4 * number_of(count)), number_of(value) & 0xFFFFFFFF
        self.enqueue(stream, Work("fill", lambda: into.view(np.uint32).fill(word)))
        return None


def host_bytes(address: int, size: int) -> np.ndarray:
    """The process's own memory at `address`."""
    if not address:
        raise DriverError(INVALID_VALUE)
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

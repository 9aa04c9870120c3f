"""Memory on the device, and host memory that the device can reach.

Every tensor has an allocation of its own, since a board that shares its memory may have no large gap left; small ones
share blocks. A `Pool` frees all of its memory together, at the latest when it is collected.
"""

from __future__ import annotations

import ctypes
import weakref

import numpy as np

from edgellm.backends.cuda.device import Device
from edgellm.errors import OutOfMemoryError

#: Of every address that `Pool.allocate` gives.
ALIGNMENT = 256
#: Allocations up to this size share blocks of `BLOCK` bytes.
SMALL = 256 << 10
BLOCK = 2 << 20
_HOST_MAPPED = 2


class Pool:
    """Device memory that belongs together.

    Args:
        device: where it is.
        what: the purpose, for the error of a full device: "weights", "the cache".
    """

    def __init__(self, device: Device, what: str) -> None:
        self.device = device
        self.what = what
        self.nbytes = 0
        self._addresses: list[int] = []
        self._block, self._left = 0, 0
        self._free = weakref.finalize(self, _free_all, device, self._addresses)
        self._free.atexit = False

    def allocate(self, nbytes: int) -> int:
        """The device address of `nbytes` bytes of whatever was there before. Raises `OutOfMemoryError`."""
        rounded = -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
        if rounded > SMALL:
            return self._own(rounded)
        if rounded > self._left:
            self._block, self._left = self._own(BLOCK), BLOCK
        address = self._block
        self._block, self._left = address + rounded, self._left - rounded
        return address

    def close(self) -> None:
        """Free everything; nothing of it may be in use any more. A second call does nothing."""
        self._free()
        self.nbytes = self._left = 0

    def _own(self, nbytes: int) -> int:
        with self.device:
            try:
                address = self.device.driver.new_handle("cuMemAlloc_v2", nbytes)
            except OutOfMemoryError as error:
                found = f"{self.device.free_bytes():,} bytes free, {self.nbytes:,} of {self.what} held already"
                what = f"the GPU has no memory for {nbytes:,} bytes more of {self.what}"
                raise OutOfMemoryError(what, key="device", found=found, hint=error.hint) from None
        self._addresses.append(address)
        self.nbytes += nbytes
        return address


class HostBuffer:
    """Page-locked host memory, mapped into the device: copies from it do not wait, and kernels can write to it.

    Attributes:
        array: uint8 [nbytes]; the memory stays as long as an array of it.
        device_address: where kernels see it.

    Raises:
        OutOfMemoryError: the system does not lock so much.
    """

    def __init__(self, device: Device, nbytes: int) -> None:
        calls = device.driver
        with device:
            address = calls.new_handle("cuMemHostAlloc", nbytes, _HOST_MAPPED)
            memory = (ctypes.c_uint8 * nbytes).from_address(address)
            weakref.finalize(memory, _free_host, device, address).atexit = False  # arrays keep `memory`
            self.device_address = calls.new_handle("cuMemHostGetDevicePointer_v2", address, 0)
        self.array = np.ctypeslib.as_array(memory)


def _free_all(device: Device, addresses: list[int]) -> None:
    with device:
        while addresses:
            device.driver.raw("cuMemFree_v2")(addresses.pop())


def _free_host(device: Device, address: int) -> None:
    with device:
        device.driver.raw("cuMemFreeHost")(address)

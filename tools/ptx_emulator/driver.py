"""A driver library without a GPU: libcuda's functions, with kernels executed by the emulator.

Streams are queues: nothing runs until somebody waits (or asks, or frees memory), so a missing wait shows as poison in
what is read too early, and host memory overwritten too early as wrong numbers.
"""

from __future__ import annotations

import ctypes
from typing import Any

from tools.ptx_emulator.driver_memory import MemoryCalls
from tools.ptx_emulator.driver_modules import ModuleCalls
from tools.ptx_emulator.driver_state import (
    DEVICES,
    INVALID_CONTEXT,
    INVALID_DEVICE,
    INVALID_VALUE,
    NAMES,
    NO_DEVICE,
    DeviceModel,
    DriverError,
    FakeDevice,
    driver_function,
    number_of,
    put,
)
from tools.ptx_emulator.driver_streams import StreamCalls


class FakeDriver(MemoryCalls, ModuleCalls, StreamCalls):
    """Has the functions of libcuda that edgellm calls; each returns a code.

    Args:
        capability: of the one device (times ten): 70, 75, 80, 87, 89, 90, 110 or 120.
        devices: the devices instead, none for a machine without a GPU.
        version: CUDA's version that the driver serves.
        raise_faults: raise what a kernel does wrong as EmulatorError out of the call that ran it; otherwise it
            becomes an error code, as a device would give it.
        races: find races in shared memory too.
        lanes: with `races`, find races between lanes of one warp as well.
        backwards: run blocks one at a time, the last first.
        rough: .approx functions are off by as much as they may be.
        measure: count what kernels execute and reach; `statistics()` has it.
        overlaps: raise for launches that may begin beside the one before them and touch what it touches too early.
    """

    def __init__(
        self,
        capability: int = 87,
        devices: list[DeviceModel] | None = None,
        version: tuple[int, int] = (12, 6),
        raise_faults: bool = True,
        races: bool = False,
        measure: bool = False,
        rough: bool = False,
        lanes: bool = False,
        backwards: bool = False,
        overlaps: bool = False,
    ) -> None:
        chosen = [DEVICES[capability]] if devices is None else devices
        options = {"races": races, "measure": measure, "rough": rough, "lanes": lanes, "backwards": backwards}
        super().__init__(chosen, version, raise_faults, options)
        self.watches_overlaps = overlaps

    # ---------------------------------------------------------------- the library
    @driver_function
    def cuInit(self, flags: int) -> int | None:
        if number_of(flags):
            return INVALID_VALUE
        self.initialized = True
        return None if self.devices else NO_DEVICE

    @driver_function
    def cuDriverGetVersion(self, version: Any) -> None:
        put(version, self.version[0] * 1000 + self.version[1] * 10)

    @driver_function
    def cuGetErrorName(self, code: int, text: Any) -> int | None:
        if number_of(code) not in NAMES:
            return INVALID_VALUE
        put(text, NAMES[number_of(code)].encode())
        return None

    # ---------------------------------------------------------------- devices
    def _numbered(self, number: object) -> FakeDevice:
        if not 0 <= number_of(number) < len(self.devices):
            raise DriverError(INVALID_DEVICE)
        return self.devices[number_of(number)]

    @driver_function
    def cuDeviceGetCount(self, count: Any) -> None:
        put(count, len(self.devices))

    @driver_function
    def cuDeviceGet(self, device: Any, number: int) -> None:
        put(device, self._numbered(number).number)

    @driver_function
    def cuDeviceGetName(self, text: Any, size: int, number: int) -> None:
        name = self._numbered(number).model.name.encode()[: number_of(size) - 1] + b"\0"
        ctypes.memmove(text, name, len(name))

    @driver_function
    def cuDeviceTotalMem_v2(self, size: Any, number: int) -> None:
        put(size, self._numbered(number).model.total_bytes)

    @driver_function
    def cuDeviceGetAttribute(self, value: Any, attribute: int, number: int) -> int | None:
        known = attributes(self._numbered(number).model)
        if number_of(attribute) not in known:
            return INVALID_VALUE
        put(value, known[number_of(attribute)])
        return None

    # ---------------------------------------------------------------- contexts
    @driver_function
    def cuDevicePrimaryCtxRetain(self, context: Any, number: int) -> None:
        device = self._numbered(number)
        device.retained += 1
        put(context, device.context)

    @driver_function
    def cuDevicePrimaryCtxRelease_v2(self, number: int) -> int | None:
        device = self._numbered(number)
        if not device.retained:
            return INVALID_CONTEXT
        device.retained -= 1
        return None

    @driver_function
    def cuCtxPushCurrent_v2(self, context: int) -> int | None:
        if not any(device.context == number_of(context) and device.retained for device in self.devices):
            return INVALID_CONTEXT
        self.contexts.append(number_of(context))
        return None

    @driver_function
    def cuCtxPopCurrent_v2(self, context: Any) -> int | None:
        if not self.contexts:
            return INVALID_CONTEXT
        put(context, self.contexts.pop())
        return None

    @driver_function
    def cuCtxSetCurrent(self, context: int) -> None:
        self.contexts[-1:] = [number_of(context)] if number_of(context) else []

    @driver_function
    def cuCtxGetCurrent(self, context: Any) -> None:
        put(context, self.contexts[-1] if self.contexts else None)


def attributes(model: DeviceModel) -> dict[int, int]:
    """CUdevice_attribute -> value."""
    return {
        1: 1024,  # threads a block
        2: 1024,
        3: 1024,
        4: 64,
        5: 2**31 - 1,  # blocks a grid
        6: 65535,
        7: 65535,
        8: model.shared_per_block,
        10: 32,
        12: model.registers_per_multiprocessor,
        13: model.clock_khz,
        16: model.multiprocessors,
        18: int(model.integrated),
        19: 1,  # maps host memory
        31: 1,  # concurrent kernels
        36: model.memory_clock_khz,
        37: model.memory_bus_bits,
        38: model.l2_bytes,
        39: model.threads_per_multiprocessor,
        40: 2,
        41: 1,  # unified addressing
        75: model.capability // 10,
        76: model.capability % 10,
        81: model.shared_per_multiprocessor,
        82: model.registers_per_multiprocessor,
        83: 1,  # managed memory
        95: 1,  # cooperative launch
        97: model.shared_optin,
    }


__all__ = ["DEVICES", "DeviceModel", "FakeDriver", "attributes"]

"""One GPU: what it is, and its context, which is made current around every call from whatever thread."""

from __future__ import annotations

import ctypes
import threading
import weakref
from dataclasses import dataclass
from typing import Any

from edgellm.backends.cuda.driver import Driver, driver
from edgellm.errors import BackendUnavailable, UsageError

#: Numbers of cuDeviceGetAttribute (cuda.h, CUdevice_attribute).
ATTRIBUTES = {
    "max_shared_per_block": 8,
    "clock_khz": 13,
    "multiprocessors": 16,
    "integrated": 18,
    "can_map_host_memory": 19,
    "memory_clock_khz": 36,
    "memory_bus_bits": 37,
    "l2_bytes": 38,
    "threads_per_multiprocessor": 39,
    "major": 75,
    "minor": 76,
    "registers_per_multiprocessor": 82,
    "max_shared_per_block_optin": 97,
}
#: The oldest capability that kernels are shipped for.
LOWEST_CAPABILITY = 70
_NAME_BYTES = 256


@dataclass(frozen=True)
class Properties:
    """What a device is.

    Attributes:
        index: of the device, as in "cuda:1".
        name: as NVIDIA calls it.
        capability: compute capability times ten, 87 for 8.7.
        total_bytes: of its memory.
        multiprocessors: how many.
        integrated: it shares the processor's memory, as a Jetson's does.
        driver: the newest CUDA version that the driver serves.
        attributes: the numbers of `ATTRIBUTES` by name.
    """

    index: int
    name: str
    capability: int
    total_bytes: int
    multiprocessors: int
    integrated: bool
    driver: tuple[int, int]
    attributes: dict[str, int]

    @property
    def architecture(self) -> str:
        """Such as "sm_87"."""
        return f"sm_{self.capability}"


def device_index(name: str | None) -> int:
    """The number in "cuda:1"; 0 for "cuda", "auto" and None. Raises `UsageError` for another text."""
    kind, colon, number = (name or "cuda").partition(":")
    if kind in ("cuda", "auto") and not colon:
        return 0
    if kind == "cuda" and number.isdecimal() and number.isascii():
        return int(number)
    raise UsageError("no such device", key="device", found=name, allowed="cuda, cuda:0, cuda:1 ...")


def count_devices() -> int:
    """How many GPUs the driver has; none without an error. Raises `BackendUnavailable` where there is no driver."""
    found = ctypes.c_int()
    driver().call("cuDeviceGetCount", ctypes.byref(found))
    return found.value


def properties(index: int) -> Properties:
    """What device `index` is, without taking any of its memory. Raises `BackendUnavailable`."""
    calls, number = driver(), ctypes.c_int()
    calls.call("cuDeviceGet", ctypes.byref(number), index, detail=f"cuda:{index} of {count_devices()}")
    name = ctypes.create_string_buffer(_NAME_BYTES)
    calls.call("cuDeviceGetName", name, _NAME_BYTES, number.value)
    total = ctypes.c_size_t()
    calls.call("cuDeviceTotalMem_v2", ctypes.byref(total), number.value)
    numbers = {}
    for key, attribute in ATTRIBUTES.items():
        value = ctypes.c_int()
        calls.call("cuDeviceGetAttribute", ctypes.byref(value), attribute, number.value)
        numbers[key] = value.value
    return Properties(
        index=index,
        name=name.value.decode("utf-8", "replace"),
        capability=10 * numbers["major"] + numbers["minor"],
        total_bytes=total.value,
        multiprocessors=numbers["multiprocessors"],
        integrated=bool(numbers["integrated"]),
        driver=calls.version,
        attributes=numbers,
    )


class Device:
    """A GPU whose primary context this process shares with whatever else in it uses CUDA.

    A context manager that makes the context current in the calling thread and puts back what was there; it nests.

    Raises:
        BackendUnavailable: there is no such GPU, or it is too old.
    """

    def __init__(self, index: int) -> None:
        self.properties = properties(index)
        if self.properties.capability < LOWEST_CAPABILITY:
            raise BackendUnavailable(
                "the GPU is too old",
                key="device",
                found=f"{self.properties.name}, compute capability {_shown(self.properties.capability)}",
                allowed=f"{_shown(LOWEST_CAPABILITY)} or newer (Volta, Turing and later)",
                hint="Leave --device out to run on the CPU.",
            )
        self.driver: Driver = driver()
        self._context = self.driver.new_handle("cuDevicePrimaryCtxRetain", index)
        self._push = self.driver.raw("cuCtxPushCurrent_v2")
        self._pop = self.driver.raw("cuCtxPopCurrent_v2")
        self._popped = ctypes.c_void_p()
        release = weakref.finalize(self, self.driver.raw("cuDevicePrimaryCtxRelease_v2"), index)
        release.atexit = False  # the process's end frees all, and the library may be gone by then

    def __enter__(self) -> Device:
        code = self._push(self._context)
        if code:
            raise self.driver.error(code, "cuCtxPushCurrent_v2")
        return self

    def __exit__(self, *_: Any) -> None:
        self._pop(ctypes.byref(self._popped))

    def free_bytes(self) -> int:
        """Bytes that can be allocated now."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with self:
            self.driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value


_devices: weakref.WeakValueDictionary[int, Device] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def open_device(index: int) -> Device:
    """Device `index`; engines of one process share it. Raises `BackendUnavailable`."""
    with _lock:
        found = _devices.get(index)
        if found is None or found.driver is not driver():
            found = _devices[index] = Device(index)
        return found


def _shown(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"

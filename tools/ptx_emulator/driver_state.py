"""What the fake driver's parts share: devices, contexts, handles, error codes and failures on order."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.memory import Memory
from tools.ptx_emulator.overlap import Overlap

SUCCESS = 0
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
NO_DEVICE = 100
INVALID_DEVICE = 101
INVALID_CONTEXT = 201
NO_BINARY_FOR_GPU = 209
INVALID_PTX = 218
UNSUPPORTED_PTX_VERSION = 222
INVALID_HANDLE = 400
NOT_FOUND = 500
NOT_READY = 600
ILLEGAL_ADDRESS = 700
LAUNCH_OUT_OF_RESOURCES = 701
MISALIGNED_ADDRESS = 716
LAUNCH_FAILED = 719
CAPTURE_UNSUPPORTED = 900
CAPTURE_INVALIDATED = 901

NAMES = {
    SUCCESS: "CUDA_SUCCESS",
    INVALID_VALUE: "CUDA_ERROR_INVALID_VALUE",
    OUT_OF_MEMORY: "CUDA_ERROR_OUT_OF_MEMORY",
    NOT_INITIALIZED: "CUDA_ERROR_NOT_INITIALIZED",
    NO_DEVICE: "CUDA_ERROR_NO_DEVICE",
    INVALID_DEVICE: "CUDA_ERROR_INVALID_DEVICE",
    INVALID_CONTEXT: "CUDA_ERROR_INVALID_CONTEXT",
    NO_BINARY_FOR_GPU: "CUDA_ERROR_NO_BINARY_FOR_GPU",
    INVALID_PTX: "CUDA_ERROR_INVALID_PTX",
    UNSUPPORTED_PTX_VERSION: "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    INVALID_HANDLE: "CUDA_ERROR_INVALID_HANDLE",
    NOT_FOUND: "CUDA_ERROR_NOT_FOUND",
    NOT_READY: "CUDA_ERROR_NOT_READY",
    ILLEGAL_ADDRESS: "CUDA_ERROR_ILLEGAL_ADDRESS",
    LAUNCH_OUT_OF_RESOURCES: "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
    MISALIGNED_ADDRESS: "CUDA_ERROR_MISALIGNED_ADDRESS",
    LAUNCH_FAILED: "CUDA_ERROR_LAUNCH_FAILED",
    CAPTURE_UNSUPPORTED: "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
    CAPTURE_INVALIDATED: "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
}


class DriverError(Exception):
    """What a fake function raises to return `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(NAMES.get(code, str(code)))
        self.code = code


@dataclass(frozen=True)
class DeviceModel:
    """A GPU to pretend. `capability` is times ten; shared memory in bytes a multiprocessor, a block and by opt-in."""

    name: str
    capability: int
    multiprocessors: int
    total_bytes: int
    integrated: bool
    shared_per_multiprocessor: int
    shared_optin: int
    threads_per_multiprocessor: int
    l2_bytes: int
    clock_khz: int
    memory_clock_khz: int
    memory_bus_bits: int
    registers_per_multiprocessor: int = 65536
    shared_per_block: int = 49152


_KB, _GB = 1 << 10, 1 << 30
# Published figures of one product of every capability.
DEVICES = {
    70: DeviceModel("Tesla V100", 70, 80, 16 * _GB, False, 96 * _KB, 96 * _KB, 2048, 6 << 20, 1530000, 877000, 4096),
    75: DeviceModel("RTX 2060", 75, 30, 6 * _GB, False, 64 * _KB, 64 * _KB, 1024, 3 << 20, 1680000, 7001000, 192),
    80: DeviceModel("A100", 80, 108, 40 * _GB, False, 164 * _KB, 163 * _KB, 2048, 40 << 20, 1410000, 1215000, 5120),
    87: DeviceModel("Orin", 87, 8, 8 * _GB, True, 164 * _KB, 163 * _KB, 1536, 2 << 20, 1020000, 3199000, 128),
    89: DeviceModel("RTX 4060", 89, 24, 8 * _GB, False, 100 * _KB, 99 * _KB, 1536, 24 << 20, 2460000, 8501000, 128),
    90: DeviceModel("H100", 90, 132, 80 * _GB, False, 228 * _KB, 227 * _KB, 2048, 50 << 20, 1980000, 2619000, 5120),
    110: DeviceModel("Thor", 110, 20, 128 * _GB, True, 228 * _KB, 227 * _KB, 1536, 32 << 20, 1575000, 4266000, 256),
    120: DeviceModel("RTX 5060", 120, 30, 8 * _GB, False, 100 * _KB, 99 * _KB, 1536, 32 << 20, 2500000, 14001000, 128),
}  # fmt: skip


@dataclass
class FakeDevice:
    """A device in use: its memory and what of it is taken."""

    model: DeviceModel
    number: int
    memory: Memory = field(default_factory=Memory)
    used_bytes: int = 0
    retained: int = 0

    @property
    def context(self) -> int:
        return 0xC0000 + self.number


class State:
    """The driver's state, and the bookkeeping around every call.

    Attributes:
        calls: how often each function was called.
        launched: names of what the device has done, in order: an entry's name, or copy, fill.
        fault: what a kernel did wrong, when faults are not raised.
        watches_overlaps: whether launches that may begin beside the one before are looked at (`overlap.py`).
        before: what the last launch reached, None behind a copy.
    """

    def __init__(
        self,
        devices: list[DeviceModel],
        version: tuple[int, int],
        raise_faults: bool,
        module_options: dict[str, bool],
    ) -> None:
        self.version = version
        self.devices = [FakeDevice(model, number) for number, model in enumerate(devices)]
        self.raise_faults = raise_faults
        self.module_options = module_options
        self.initialized = False
        self.calls: Counter[str] = Counter()
        self.launched: list[str] = []
        self.fault: EmulatorError | None = None
        self.watches_overlaps = False
        self.before: Overlap | None = None
        self.handles: dict[int, Any] = {}
        self._next_handle = 0x1000
        self._failures: dict[str, dict[int, int]] = {}
        self._sticky = SUCCESS
        self._current = threading.local()
        self.lock = threading.RLock()

    def fail(self, function: str, code: int, nth: int = 1) -> None:
        """Lets the `nth` call of `function` from now on return `code`."""
        self._failures.setdefault(function, {})[self.calls[function] + nth] = code

    # ---------------------------------------------------------------- for the parts
    @property
    def contexts(self) -> list[int]:
        """The calling thread's stack of contexts."""
        if not hasattr(self._current, "stack"):
            self._current.stack = []
        return self._current.stack

    @property
    def device(self) -> FakeDevice:
        """The device whose context is current."""
        if not self.contexts:
            raise DriverError(INVALID_CONTEXT)
        return self.devices[self.contexts[-1] - 0xC0000]

    def new_handle(self, thing: object) -> int:
        self._next_handle += 0x10
        self.handles[self._next_handle] = thing
        return self._next_handle

    def held(self, handle: object, kind: type) -> Any:
        """What a handle stands for; a DriverError when it is none or of another kind."""
        thing = self.handles.get(number_of(handle))
        if not isinstance(thing, kind):
            raise DriverError(INVALID_HANDLE)
        return thing

    def drop(self, handle: object, kind: type) -> Any:
        thing = self.held(handle, kind)
        del self.handles[number_of(handle)]
        return thing

    def faulted(self, error: EmulatorError) -> None:
        """A kernel went wrong: raised at once, or kept as the context's error until the process ends."""
        self.fault = error
        if self.raise_faults:
            raise error
        message = str(error)
        self._sticky = LAUNCH_FAILED
        if error.address is not None:
            self._sticky = MISALIGNED_ADDRESS if "aligned" in message else ILLEGAL_ADDRESS

    def overlap_of(self, beside: bool) -> Overlap | None:
        """What looks at the launch that begins now."""
        return Overlap(self.before if beside else None) if self.watches_overlaps else None

    def code_of(self, name: str, function: Callable[..., int | None], arguments: tuple[Any, ...]) -> int:
        self.calls[name] += 1
        ordered = self._failures.get(name, {}).pop(self.calls[name], None)
        if ordered is not None:
            return ordered
        if not self.initialized and name not in ("cuInit", "cuGetErrorName", "cuGetErrorString", "cuDriverGetVersion"):
            return NOT_INITIALIZED
        if self._sticky and self.contexts and name not in ("cuGetErrorName", "cuGetErrorString"):
            return self._sticky
        try:
            return function(self, *arguments) or SUCCESS
        except DriverError as error:
            return error.code


def driver_function(function: Callable[..., int | None]) -> Callable[..., int]:
    """Makes a method a driver function: counted, failing on order, returning a code."""

    @functools.wraps(function)
    def called(self: State, *arguments: Any) -> int:
        with self.lock:
            code = self.code_of(function.__name__, function, arguments)
            return code if code != SUCCESS else self._sticky if self.contexts else SUCCESS

    return called


def number_of(value: object) -> int:
    """A handle, address or size given as an int or as a ctypes object."""
    if value is None:
        return 0
    if isinstance(value, int):
        return value
    if isinstance(value, ctypes.Array):
        return ctypes.addressof(value)
    return int(getattr(value, "value", None) or 0)


def put(out: Any, value: Any) -> None:
    """Stores through an out-parameter: ctypes.byref(x), a pointer, or the object itself."""
    target = getattr(out, "_obj", None)
    if target is None:
        target = out.contents if hasattr(out, "contents") else out
    target.value = value

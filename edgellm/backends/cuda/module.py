"""Kernels in the driver's hands: PTX that it compiles for the device, functions, and launches with packed arguments."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

from edgellm.backends.cuda.dependent import LAUNCH, dependent_config, serves, waiting
from edgellm.backends.cuda.device import Device
from edgellm.backends.cuda.driver_errors import SUCCESS
from edgellm.backends.cuda.entry import Entry
from edgellm.backends.cuda.stream import Stream, destroy

_SCALARS = {"u16": ctypes.c_uint16, "u32": ctypes.c_uint32, "i32": ctypes.c_int32, "f32": ctypes.c_float,
            "u64": ctypes.c_uint64}  # fmt: skip
#: Numbers of cuModuleLoadDataEx's options (CUjit_option): where the compiler writes what is wrong, and how much fits.
_ERROR_LOG, _ERROR_LOG_BYTES = 5, 6
_LOG_BYTES = 8192
#: Numbers of cuFuncGetAttribute (CUfunction_attribute).
_ATTRIBUTES = {"shared": 1, "local": 3, "registers": 4}
_MAX_DYNAMIC_SHARED = 8
#: Dynamic shared memory up to which a launch needs no permission.
_SHARED_FOR_ALL = 48 << 10


class Module:
    """PTX that the driver has compiled for the device. Its own cache keeps what it compiled between processes.

    Attributes:
        overlapping: names of its kernels that may begin beside the launch before them.

    Raises:
        BackendUnavailable: the driver cannot compile it; says what it says.
    """

    def __init__(self, device: Device, ptx: str) -> None:
        self.device = device
        self.overlapping = waiting(ptx) if serves(device) else frozenset()
        calls = device.driver
        image = ctypes.create_string_buffer(ptx.encode("ascii"))
        log = ctypes.create_string_buffer(_LOG_BYTES)
        options = (ctypes.c_int * 2)(_ERROR_LOG, _ERROR_LOG_BYTES)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
        handle = ctypes.c_void_p()
        with device:
            code = calls.raw("cuModuleLoadDataEx")(ctypes.byref(handle), ctypes.addressof(image), 2, options, values)
        if code != SUCCESS:
            detail = " ".join(log.value.decode("ascii", "replace").split())
            raise calls.error(code, "cuModuleLoadDataEx", detail)
        self.handle = handle.value or 0
        weakref.finalize(self, destroy, device, "cuModuleUnload", self.handle).atexit = False

    def function(self, entry: Entry) -> Function:
        """One of its kernels. Raises `BackendUnavailable` where the PTX has none of that name."""
        return Function(self, entry)


class Function:
    """A kernel that can be launched.

    Attributes:
        entry: the kernel.
    """

    def __init__(self, module: Module, entry: Entry) -> None:
        self.entry = entry
        self._module = module  # its code goes with it
        self._calls = module.device.driver
        self._launch = self._calls.raw("cuLaunchKernel")
        self._launch_beside = self._calls.raw(LAUNCH) if entry.name in module.overlapping else None
        with module.device:
            self.handle = self._calls.new_handle("cuModuleGetFunction", module.handle, entry.name.encode("ascii"))
            if entry.dynamic_shared > _SHARED_FOR_ALL:
                self._calls.call("cuFuncSetAttribute", self.handle, _MAX_DYNAMIC_SHARED, entry.dynamic_shared)
        self._types = tuple(
            (parameter.name, ctypes.c_uint64 if parameter.pointer else _SCALARS[parameter.type])
            for parameter in entry.parameters
        )

    def resources(self) -> dict[str, int]:
        """Registers a thread, bytes of local memory a thread, bytes of static shared memory a block."""
        found, value = {}, ctypes.c_int()
        with self._module.device:
            for name, attribute in _ATTRIBUTES.items():
                self._calls.call("cuFuncGetAttribute", ctypes.byref(value), attribute, self.handle)
                found[name] = value.value
        return found

    def blocks_a_multiprocessor(self) -> int:
        """How many blocks of it a multiprocessor holds at once."""
        blocks = ctypes.c_int()
        with self._module.device:
            threads, shared = self.entry.threads, self.entry.dynamic_shared
            name = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
            self._calls.call(name, ctypes.byref(blocks), self.handle, threads, shared)
        return blocks.value

    def prepare(self, grid: tuple[int, ...], **arguments: Any) -> Launch:
        """A launch of `grid` blocks, x first, with its arguments packed: addresses of pointers, numbers of scalars.

        Raises:
            TypeError: an argument is missing, or the kernel has none of that name.
        """
        if arguments.keys() != {name for name, _ in self._types}:
            wanted = ", ".join(name for name, _ in self._types)
            raise TypeError(f"{self.entry.name} takes {wanted}; given: {', '.join(arguments)}")
        values = tuple(kind(arguments[name]) for name, kind in self._types)
        return Launch(self, (*grid, 1, 1)[:3], values)


class Launch:
    """A kernel, its grid and its arguments, ready to be put into a stream any number of times.

    Attributes:
        name: of the kernel.
        grid: blocks, x, y, z.
        values: ctypes scalars in order; a new value in one counts from the next `run` on.
    """

    __slots__ = ("_arguments", "_calls", "_config", "_fixed", "_function", "_pointers", "grid", "name", "values")

    def __init__(self, function: Function, grid: tuple[int, ...], values: tuple[Any, ...]) -> None:
        self.name, self.grid, self.values = function.entry.name, grid, values
        self._function = function  # whose module goes with it
        self._calls = function._calls
        self._pointers = (ctypes.c_void_p * max(len(values), 1))(*[ctypes.addressof(value) for value in values])
        self._arguments = ctypes.addressof(self._pointers)
        entry = function.entry
        self._fixed = (function.handle, *grid, entry.threads, 1, 1, entry.dynamic_shared)
        self._config = dependent_config(grid, entry.threads, entry.dynamic_shared) if function._launch_beside else None

    def run(self, stream: Stream) -> None:
        """Put it into the stream. The context must be current."""
        code = self._function._launch(*self._fixed, stream.handle, self._arguments, None)
        if code:
            raise self._calls.error(code, "cuLaunchKernel", self.name)

    def follow(self, stream: Stream) -> None:
        """As `run` behind another launch, beside which it may begin where kernel and device know how to wait."""
        if self._config is None:
            self.run(stream)
            return
        self._config.stream = stream.handle
        function = self._function
        code = function._launch_beside(ctypes.addressof(self._config), function.handle, self._arguments, None)
        if code:
            raise self._calls.error(code, LAUNCH, self.name)


def run_in_order(launches: Sequence[Launch], stream: Stream) -> None:
    """Put launches into the stream, each to `follow` the one before; the first waits for whatever the stream has."""
    for launch in launches[:1]:
        launch.run(stream)
    for launch in launches[1:]:
        launch.follow(stream)

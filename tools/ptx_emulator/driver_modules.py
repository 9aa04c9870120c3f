"""The fake driver's modules, functions and launches."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tools.ptx_emulator.driver_state import (
    INVALID_PTX,
    INVALID_VALUE,
    LAUNCH_OUT_OF_RESOURCES,
    NO_BINARY_FOR_GPU,
    NOT_FOUND,
    UNSUPPORTED_PTX_VERSION,
    DriverError,
    FakeDevice,
    State,
    driver_function,
    number_of,
    put,
)
from tools.ptx_emulator.driver_work import Work
from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.features import too_new
from tools.ptx_emulator.module import Kernel, Module
from tools.ptx_emulator.statistics import Statistics

_ERROR_LOG, _ERROR_LOG_BYTES = 5, 6
_MAX_DYNAMIC_SHARED = 8
#: CUlaunchConfig: grid, block, shared bytes, stream, attributes, their number; CUlaunchAttribute: id, value.
_CONFIG = struct.Struct("<7I4xQQI4x")
_ATTRIBUTE = struct.Struct("<i4xi60x")
_SERIALIZATION = 6
_REGISTERS = 64  # nobody knows before ptxas has run
# The PTX version that came with each CUDA 12; 11.m came with 7.m and 13.m with 9.m.
_PTX_OF_12 = (0, 1, 2, 3, 4, 5, 5, 6, 7, 8)


@dataclass
class LoadedModule:
    """PTX that a device has taken."""

    module: Module
    device: FakeDevice


@dataclass
class Function:
    """An entry of a loaded module."""

    name: str
    kernel: Kernel
    device: FakeDevice
    attributes: dict[int, int] = field(default_factory=dict)


def newest_ptx(driver: tuple[int, int]) -> tuple[int, int]:
    """The newest PTX version that a driver serving that CUDA version takes."""
    major, minor = driver
    if major == 12:
        return 8, _PTX_OF_12[min(minor, len(_PTX_OF_12) - 1)]
    return major - 4, minor


class ModuleCalls(State):
    """cuModule*, cuFunc*, cuOccupancy* and cuLaunchKernel*."""

    @driver_function
    def cuModuleLoadDataEx(self, module: Any, image: Any, count: int, options: Any, values: Any) -> int | None:
        log = _log_of(number_of(count), options, values)
        text = image if isinstance(image, bytes) else ctypes.string_at(number_of(image))
        device = self.device
        try:
            loaded = Module(text.decode("ascii"), device.memory, **self.module_options)
            for entry in loaded.entries:
                loaded.kernel(entry)
        except (EmulatorError, UnicodeDecodeError) as error:
            _write(log, f"ptxas error   : {error}")
            return INVALID_PTX
        if loaded.text.version > newest_ptx(self.version):
            found = ".".join(map(str, loaded.text.version))
            _write(log, f"ptxas error   : Unsupported .version {found}")
            return UNSUPPORTED_PTX_VERSION
        target = loaded.text.target.removeprefix("sm_")
        if target.endswith(("a", "f")) or int(target) > device.model.capability:
            _write(log, f"ptxas error   : .target sm_{target} on sm_{device.model.capability}")
            return NO_BINARY_FOR_GPU
        complaints = list(too_new(loaded.text))
        if complaints:
            _write(log, "\n".join(f"ptxas error   : {complaint}" for complaint in complaints))
            return INVALID_PTX
        put(module, self.new_handle(LoadedModule(loaded, device)))
        return None

    @driver_function
    def cuModuleLoadData(self, module: Any, image: Any) -> int | None:
        return self.cuModuleLoadDataEx(module, image, 0, None, None)

    @driver_function
    def cuModuleUnload(self, module: int) -> None:
        self.finish_all()
        loaded = self.drop(module, LoadedModule)
        for address in loaded.module.addresses.values():
            loaded.device.memory.free(address)
        kernels = {function for function, thing in self.handles.items() if _of(thing, loaded)}
        for handle in kernels:
            del self.handles[handle]

    @driver_function
    def cuModuleGetFunction(self, function: Any, module: int, name: Any) -> int | None:
        loaded = self.held(module, LoadedModule)
        text = (name if isinstance(name, bytes) else ctypes.string_at(name)).decode()
        if text not in loaded.module.entries:
            return NOT_FOUND
        put(function, self.new_handle(Function(text, loaded.module.kernel(text), loaded.device)))
        return None

    def statistics(self) -> dict[str, Statistics]:
        """What was counted, by entry, of the modules that are loaded."""
        loaded = [thing.module for thing in self.handles.values() if isinstance(thing, LoadedModule)]
        return {name: counts for module in loaded for name, counts in module.statistics.items()}

    # ---------------------------------------------------------------- attributes
    @driver_function
    def cuFuncGetAttribute(self, value: Any, attribute: int, function: int) -> int | None:
        found = self.held(function, Function)
        kernel = found.kernel
        known = {
            0: kernel.function.max_threads or 1024,
            1: kernel.static_shared,
            2: 0,
            3: kernel.local_bytes,
            4: _REGISTERS,
            5: kernel.module.text.version[0] * 10 + kernel.module.text.version[1],
            6: found.device.model.capability,
            8: found.attributes.get(8, found.device.model.shared_per_block - kernel.static_shared),
            9: found.attributes.get(9, -1),
        }
        if number_of(attribute) not in known:
            return INVALID_VALUE
        put(value, known[number_of(attribute)])
        return None

    @driver_function
    def cuFuncSetAttribute(self, function: int, attribute: int, value: int) -> int | None:
        found = self.held(function, Function)
        limit = found.device.model.shared_optin - found.kernel.static_shared
        if number_of(attribute) not in (8, 9) or (number_of(attribute) == 8 and not 0 <= number_of(value) <= limit):
            return INVALID_VALUE
        found.attributes[number_of(attribute)] = number_of(value)
        return None

    @driver_function
    def cuOccupancyMaxActiveBlocksPerMultiprocessor(
        self, blocks: Any, function: int, threads: int, shared: int
    ) -> int | None:
        """A block takes threads, shared memory (and 1 KiB of it for the system) and registers."""
        found, model = self.held(function, Function), self.device.model
        lanes = -(-number_of(threads) // 32) * 32
        if not lanes:
            return INVALID_VALUE
        taken = found.kernel.static_shared + number_of(shared) + (1024 if model.capability >= 80 else 0)
        limits = [model.threads_per_multiprocessor // lanes, model.registers_per_multiprocessor // (lanes * _REGISTERS)]
        limits += [16 if model.capability in (75, 87, 89, 120) else 32]
        limits += [model.shared_per_multiprocessor // taken] if taken else []
        put(blocks, min(limits))
        return None

    # ---------------------------------------------------------------- launches
    @driver_function
    def cuLaunchKernel(self, function: int, *rest: Any) -> int | None:
        """rest: grid x y z, block x y z, dynamic shared bytes, stream, parameters, extra."""
        *extents, stream, parameters, extra = rest
        return self._launch(function, [number_of(value) for value in extents], stream, parameters, extra, False)

    @driver_function
    def cuLaunchKernelEx(self, config: Any, function: int, parameters: Any, extra: Any) -> int | None:
        """Takes the attribute of programmatic stream serialization, on devices that have it."""
        *extents, stream, attributes, count = _CONFIG.unpack(ctypes.string_at(number_of(config), _CONFIG.size))
        beside = False
        for number in range(count):
            text = ctypes.string_at(attributes + number * _ATTRIBUTE.size, _ATTRIBUTE.size)
            kind, value = _ATTRIBUTE.unpack(text)
            if kind != _SERIALIZATION or self.device.model.capability < 90:
                return INVALID_VALUE
            beside = bool(value)
        return self._launch(function, extents, stream, parameters, extra, beside)

    def _launch(
        self, function: int, extents: list[int], stream: int, parameters: Any, extra: Any, beside: bool
    ) -> int | None:
        gx, gy, gz, bx, by, bz, shared = extents
        found = self.held(function, Function)
        kernel, model = found.kernel, found.device.model
        if extra is not None and number_of(extra):
            return INVALID_VALUE
        if min(gx, gy, gz, bx, by, bz) < 1 or gy > 65535 or gz > 65535 or bx * by * bz > 1024:
            return INVALID_VALUE
        if bx * by * bz > (kernel.function.max_threads or 1024):
            return LAUNCH_OUT_OF_RESOURCES
        allowed = found.attributes.get(_MAX_DYNAMIC_SHARED, model.shared_per_block - kernel.static_shared)
        if shared > allowed:
            return INVALID_VALUE
        data = _parameters(kernel, number_of(parameters))

        def run() -> None:
            overlap = self.overlap_of(beside)
            kernel.run((gx, gy, gz), (bx, by, bz), data, dynamic_shared=shared, overlap=overlap)
            self.before = overlap

        self.enqueue(stream, Work(found.name, run, beside))
        return None


def _of(thing: object, loaded: LoadedModule) -> bool:
    return isinstance(thing, Function) and thing.kernel.module is loaded.module


def _parameters(kernel: Kernel, address: int) -> np.ndarray:
    """The parameters' bytes, read now through the array of pointers at `address`."""
    variables = kernel.function.parameters
    data = np.zeros(kernel.parameter_bytes, np.uint8)
    if variables and not address:
        raise DriverError(INVALID_VALUE)
    pointers = (ctypes.c_void_p * len(variables)).from_address(address) if variables else ()
    for variable, pointer in zip(variables, pointers, strict=True):
        if not pointer:
            raise DriverError(INVALID_VALUE)
        start = kernel.symbols[variable.name][1]
        data[start : start + variable.size] = np.frombuffer(ctypes.string_at(pointer, variable.size), np.uint8)
    return data


def _log_of(count: int, options: Any, values: Any) -> tuple[int, int] | None:
    """(address, size) of the buffer for the compiler's errors."""
    given = {int(options[k]): number_of(values[k]) for k in range(count)} if count else {}
    if _ERROR_LOG not in given or not given.get(_ERROR_LOG_BYTES):
        return None
    return given[_ERROR_LOG], given[_ERROR_LOG_BYTES]


def _write(log: tuple[int, int] | None, text: str) -> None:
    if log is not None:
        data = text.encode("ascii", "replace")[: log[1] - 1] + b"\0"
        ctypes.memmove(log[0], data, len(data))

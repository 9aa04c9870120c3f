"""NVIDIA's driver library through ctypes: the functions that the runtime calls, and nothing else of CUDA.

`load_library` is the one place where the library is opened; tests put an object in its stead that has functions of the
same names. Out-parameters are passed by `ctypes.byref`, handles and device addresses as plain ints, host memory as an
int address, text as bytes. A call whose code is not 0 raises.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_ulonglong, c_void_p
from typing import Any

from edgellm.backends.cuda.driver_errors import INSTALL_DRIVER, NOT_READY, OUT_OF_MEMORY, SUCCESS, CudaError
from edgellm.errors import BackendUnavailable, OutOfMemoryError

LIBRARIES = (
    ("nvcuda.dll",)
    if sys.platform == "win32"
    else (
        "libcuda.so.1",
        "libcuda.so",
        "/usr/lib/wsl/lib/libcuda.so.1",
        "/usr/lib/aarch64-linux-gnu/tegra/libcuda.so.1",
        "/usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1",
    )
)

_HANDLE, _ADDRESS = c_void_p, c_ulonglong

#: Argument types by function: the C declarations of cuda.h, which CUDA 11.4 (JetPack 5) has all of.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(_HANDLE), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (_HANDLE,),
    "cuCtxPopCurrent_v2": (POINTER(_HANDLE),),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(_ADDRESS), c_size_t),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemHostGetDevicePointer_v2": (POINTER(_ADDRESS), c_void_p, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, c_void_p, c_size_t, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (c_void_p, _ADDRESS, c_size_t, _HANDLE),
    "cuMemcpyDtoDAsync_v2": (_ADDRESS, _ADDRESS, c_size_t, _HANDLE),
    "cuMemsetD8Async": (_ADDRESS, c_ubyte, c_size_t, _HANDLE),
    "cuStreamCreate": (POINTER(_HANDLE), c_uint),
    "cuStreamDestroy_v2": (_HANDLE,),
    "cuStreamSynchronize": (_HANDLE,),
    "cuStreamQuery": (_HANDLE,),
    "cuEventCreate": (POINTER(_HANDLE), c_uint),
    "cuEventDestroy_v2": (_HANDLE,),
    "cuEventRecord": (_HANDLE, _HANDLE),
    "cuEventSynchronize": (_HANDLE,),
    "cuEventQuery": (_HANDLE,),
    "cuEventElapsedTime": (POINTER(c_float), _HANDLE, _HANDLE),
    "cuModuleLoadDataEx": (POINTER(_HANDLE), c_void_p, c_uint, POINTER(c_int), POINTER(c_void_p)),
    "cuModuleUnload": (_HANDLE,),
    "cuModuleGetFunction": (POINTER(_HANDLE), _HANDLE, c_char_p),
    "cuFuncGetAttribute": (POINTER(c_int), c_int, _HANDLE),
    "cuFuncSetAttribute": (_HANDLE, c_int, c_int),
    "cuOccupancyMaxActiveBlocksPerMultiprocessor": (POINTER(c_int), _HANDLE, c_int, c_size_t),
    "cuLaunchKernel": (_HANDLE, *[c_uint] * 7, _HANDLE, c_void_p, c_void_p),
    "cuStreamBeginCapture_v2": (_HANDLE, c_int),
    "cuStreamEndCapture": (_HANDLE, POINTER(_HANDLE)),
    "cuGraphInstantiateWithFlags": (POINTER(_HANDLE), _HANDLE, c_ulonglong),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuGraphGetNodes": (_HANDLE, c_void_p, POINTER(c_size_t)),
    "cuGraphDestroy": (_HANDLE,),
    "cuGraphExecDestroy": (_HANDLE,),
}

#: What newer drivers have beside these: who calls one asks `Driver.has` first.
OPTIONAL: dict[str, tuple[Any, ...]] = {
    "cuLaunchKernelEx": (c_void_p, _HANDLE, c_void_p, c_void_p),  # CUDA 11.8
}


def load_library() -> Any:
    """The driver's library. Raises `BackendUnavailable` where there is none; says what to install."""
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BackendUnavailable("NVIDIA's driver is not installed here", key="device", found=f"no {LIBRARIES[0]}",
                             hint=INSTALL_DRIVER)  # fmt: skip


class Driver:
    """The library, initialized. `call` checks; `raw` gives a bound function for calls that must be fast.

    Raises:
        BackendUnavailable: there is no driver, or it cannot start.
    """

    def __init__(self, library: Any) -> None:
        self._functions = {name: _bound(library, name, types) for name, types in FUNCTIONS.items()}
        newer = {name: types for name, types in OPTIONAL.items() if hasattr(library, name)}
        self._functions |= {name: _bound(library, name, types) for name, types in newer.items()}
        self.call("cuInit", 0)
        version = c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        self.version = (version.value // 1000, version.value % 1000 // 10)

    def has(self, name: str) -> bool:
        """Whether the library has the function `name`, one of `OPTIONAL`."""
        return name in self._functions

    def raw(self, name: str) -> Callable[..., int]:
        """The function `name`, unchecked: it returns the driver's code."""
        return self._functions[name]

    def call(self, name: str, *arguments: Any, detail: str = "") -> None:
        """Call `name`. Raises `CudaError`, or `OutOfMemoryError` where memory is short."""
        code = self._functions[name](*arguments)
        if code != SUCCESS:
            raise self.error(code, name, detail)

    def is_done(self, name: str, handle: int) -> bool:
        """Whether a query, cuStreamQuery or cuEventQuery, finds everything done."""
        code = self._functions[name](handle)
        if code not in (SUCCESS, NOT_READY):
            raise self.error(code, name)
        return code == SUCCESS

    def error(self, code: int, call: str, detail: str = "") -> BackendUnavailable | OutOfMemoryError:
        """The error for a code that `call` returned."""
        error = CudaError(code, self._error_name(code), call, detail)
        if code == OUT_OF_MEMORY:
            return OutOfMemoryError(error.what, key="device", hint=error.hint)
        return error

    def new_handle(self, name: str, *arguments: Any) -> int:
        """What a function that gives a handle or an address through its first parameter gives."""
        out = FUNCTIONS[name][0]._type_()
        self.call(name, ctypes.byref(out), *arguments)
        return out.value or 0

    def _error_name(self, code: int) -> str:
        text = c_char_p()
        if self._functions["cuGetErrorName"](code, ctypes.byref(text)) != SUCCESS or not text.value:
            return f"error {code}"
        return text.value.decode("ascii", "replace")


def _bound(library: Any, name: str, types: tuple[Any, ...]) -> Callable[..., int]:
    try:
        function = getattr(library, name)
    except AttributeError:
        raise CudaError(222, f"no {name}", "the driver's library") from None
    if isinstance(library, ctypes.CDLL):
        function.argtypes, function.restype = types, c_int
    return function


_lock = threading.Lock()
_driver: Driver | None = None


def driver() -> Driver:
    """The process's driver, loaded at the first call. Raises `BackendUnavailable`."""
    global _driver
    with _lock:
        if _driver is None:
            _driver = Driver(load_library())
        return _driver


def forget() -> None:
    """Load the library anew at the next call: for tests, which put another in its place."""
    global _driver
    with _lock:
        _driver = None

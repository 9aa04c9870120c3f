"""Kernels as Python calls them: machine code that takes one block of numbers, so that neither a start whose code is
kept nor a call needs numba (0.3 s to import, 0.1 ms for the arguments of a step).

    walk = Native("edgellm.backends.cpu.walker", "walk", threaded=True)
    call = walk.prepare(model, space, ...)         # arrays, numbers, tuples of them
    team.run(call.function, call.address)          # function(address, ith, nth) in every thread
    call.update(model, space, ...)                 # for the next step: what has changed is written

A native function is `int64 f(int64 *block, int64 ith, int64 nth)`, which gives 0 unless the kernel raised. The block
holds, one behind the other,

    what the kernel returns, a float64
    of an array its address, then its shape; of a tuple its items; an integer; a float's bits as a float64

Arrays are C-contiguous and aligned, and stay alive with their call. The code comes from the cache (`jit_cache`), or the
kernel's module is imported and compiled (`native_build`). With NUMBA_DISABLE_JIT=1, and where this numba does not let
its code be taken, the kernel itself is called with the arguments.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from edgellm.backends.cpu import jit_cache, jit_digest, native_object
from edgellm.errors import EdgeLLMError, UsageError
from edgellm.simd.settings import setting

_PROTOTYPE = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
#: Kept in place of code that cannot be loaded here, so that it is not compiled again at each start to learn so.
_REFUSED, _REFUSED_ADDRESS = b"refused", 0
_log = logging.getLogger("edgellm")


class Native:
    """A kernel that Python calls.

    Args:
        module: where it is; imported only where it must be compiled.
        name: in that module.
        threaded: whether its last two parameters are the thread's number and how many there are.
    """

    def __init__(self, module: str, name: str, *, threaded: bool = False) -> None:
        self.module, self.name, self.threaded = module, name, threaded
        self._functions: dict[str, Callable[..., int] | None] = {}
        self._lock = threading.Lock()

    @property
    def kernel(self) -> Callable[..., Any]:
        """The kernel itself, with its module imported."""
        return getattr(importlib.import_module(self.module), self.name)

    def __call__(self, *arguments: Any) -> float:
        """Call it once; what it returns, 0.0 where that is nothing. Raises as `prepare`, and what the kernel raises."""
        call = self.prepare(*arguments)
        call.function(call.address, 0, 1)
        return call.result

    def prepare(self, *arguments: Any) -> Call:
        """Lay arguments out. Raises `UsageError` for one that a block cannot hold."""
        return Call(self, arguments)

    def compiled(self, signature: str, arguments: tuple[Any, ...]) -> Callable[..., int] | None:
        """The function for arguments of that signature; None where only the kernel itself can be called."""
        with self._lock:
            if signature not in self._functions:
                self._functions[signature] = self._resolve(signature, arguments)
            return self._functions[signature]

    def _resolve(self, signature: str, arguments: tuple[Any, ...]) -> Callable[..., int] | None:
        if setting("DISABLE_JIT"):
            return None
        digest = jit_digest.digest()
        key = f"native {self.module}.{self.name}({signature}) {digest}"
        ours = self.module.startswith("edgellm.")  # the digest knows no other sources
        address = jit_cache.load(self.name, key, _address_of) if ours else None
        if address is None:
            payload, address = self._build(arguments)
            if ours and jit_digest.current() == digest:  # else sources were edited since: this code is of other ones
                jit_cache.save(self.name, key, payload)
        if address == _REFUSED_ADDRESS:
            return None
        function = _PROTOTYPE(address)
        function.errcheck = partial(_require_success, self.name)
        return function

    def _build(self, arguments: tuple[Any, ...]) -> tuple[bytes, int]:
        """What is to be kept, and the address: of a function, or of none where the kernel must be called itself."""
        from edgellm.backends.cpu import native_build

        try:
            payload = native_build.build(self.kernel, arguments, threaded=self.threaded)
            return payload, native_object.load(payload)
        except (native_build.NotNative, native_object.Unresolved) as error:
            _log.debug("%s is called through numba: %s", self.name, error)
            return _REFUSED, _REFUSED_ADDRESS


def _address_of(payload: bytes) -> int:
    return _REFUSED_ADDRESS if payload == _REFUSED else native_object.load(payload)


class Call:
    """A native kernel with its arguments laid out, to be called as often as wanted.

    Attributes:
        function: to be called with `address`, the thread's number, and how many threads there are.
        address: of the block.
        native: whether it is machine code that is called, and not the kernel through Python or numba.
    """

    def __init__(self, native: Native, arguments: tuple[Any, ...]) -> None:
        self._leaves = list(_leaves(arguments))
        kinds = [_kind(leaf) for leaf in self._leaves]
        self._like, self._kinds = arguments, kinds
        self._places, size = [], 1
        for leaf in self._leaves:
            self._places.append(size)
            size += 1 + leaf.ndim if isinstance(leaf, np.ndarray) else 1
        self._block = (ctypes.c_int64 * size)()
        self.address = ctypes.addressof(self._block)
        function = native.compiled(_signature(arguments), arguments)
        self.native = function is not None
        self.function = partial(self._call_kernel, native) if function is None else function
        for number, leaf in enumerate(self._leaves):
            self._put(number, leaf)

    @property
    def result(self) -> float:
        """What the last call returned."""
        return struct.unpack("d", struct.pack("q", self._block[0]))[0]

    def update(self, *arguments: Any) -> None:
        """Take other arguments of the same kinds. Raises `UsageError` for one of another kind."""
        for number, leaf in enumerate(_leaves(arguments)):
            self.replace(number, leaf)

    def replace(self, number: int, leaf: Any) -> None:
        """Take another argument, the one of that number where tuples are counted through; the very same object is not
        looked at. Raises `UsageError` for one of another kind."""
        if leaf is self._leaves[number]:
            return
        kind, allowed = _kind(leaf), self._kinds[number]
        if kind != allowed:
            raise UsageError("another kind of argument", key=f"number {number}", found=kind, allowed=allowed)
        self._leaves[number] = leaf
        self._put(number, leaf)

    def _put(self, number: int, leaf: Any) -> None:
        block, at = self._block, self._places[number]
        if isinstance(leaf, np.ndarray):
            block[at] = leaf.ctypes.data
            block[at + 1 : at + 1 + leaf.ndim] = leaf.shape
        elif isinstance(leaf, (float, np.floating)):
            block[at] = struct.unpack("q", struct.pack("d", leaf))[0]
        else:
            block[at] = leaf

    def _call_kernel(self, native: Native, address: int, ith: int, nth: int) -> int:
        arguments = _nested(self._like, iter(self._leaves))
        returned = native.kernel(*arguments, ith, nth) if native.threaded else native.kernel(*arguments)
        if returned is not None:
            self._block[0] = struct.unpack("q", struct.pack("d", returned))[0]
        return 0


def _leaves(arguments: tuple[Any, ...]) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _leaves(argument)
        else:
            yield argument


def _nested(like: tuple[Any, ...], leaves: Iterator[Any]) -> tuple[Any, ...]:
    return tuple(_nested(item, leaves) if isinstance(item, tuple) else next(leaves) for item in like)


def _signature(arguments: tuple[Any, ...]) -> str:
    return " ".join(f"({_signature(a)})" if isinstance(a, tuple) else _kind(a) for a in arguments)


def _kind(leaf: Any) -> str:
    """What the compiled code takes a value for. Raises `UsageError`."""
    if isinstance(leaf, np.ndarray):
        flags = leaf.flags
        if flags.c_contiguous and flags.aligned:
            return f"{leaf.dtype.str}[{leaf.ndim}]"
        raise UsageError("kernels take arrays that are contiguous and aligned", found=f"{leaf.dtype} {leaf.shape}")
    if isinstance(leaf, np.float32):
        return "float32"
    if isinstance(leaf, float):
        return "float64"
    if isinstance(leaf, (int, np.integer)):
        return "int64"
    raise UsageError("no such argument of a kernel", found=type(leaf).__name__)


def _require_success(name: str, status: int, function: Any, arguments: tuple[Any, ...]) -> int:
    if status:
        hint = "Please report it; with NUMBA_DISABLE_JIT=1 Python shows where."
        raise EdgeLLMError(f"kernel {name} raised an error (status {status})", hint=hint)
    return status

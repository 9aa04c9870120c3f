"""One safetensors file: its header is checked once, its tensors are copied out with positioned reads.

Nothing is mapped: a mapped file that is truncated by another process kills this one with SIGBUS, while a read that
comes back short is an error with a name.
"""

from __future__ import annotations

import math
import os
import stat
import threading
from pathlib import Path

import numpy as np

from edgellm.errors import InputError, ModelError, OutOfMemoryError
from edgellm.formats.dtypes import NUMPY_DTYPES
from edgellm.formats.header import PREFIX_BYTES, Header, header_length, parse_header
from edgellm.formats.hints import MAGICS
from edgellm.formats.limits import MAX_HEADER_BYTES

_CHUNK_BYTES = 1 << 30  # one read call moves at most 2 GiB on Linux, less elsewhere
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class SafetensorsFile:
    """An open safetensors file. Reads may come from several threads.

    Raises:
        InputError: the file is not there or may not be read.
        ModelError: it is not a regular file, or its header is refused.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self.path = Path(path)
        self._identity: tuple[int, ...] | None = None
        try:
            self.header = self._read_header(self._open())
            self._library_agrees()
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> np.ndarray:
        """A fresh array of the tensor as stored, BF16 as uint16. Raises `ModelError`, `OutOfMemoryError`."""
        return self._read(name, self.header.tensors[name].shape, 0)

    def read_rows(self, name: str, first: int, last: int) -> np.ndarray:
        """A fresh array of the tensor's rows first..last-1, as `read` gives them; 0 <= first <= last <= shape[0]."""
        info = self.header.tensors[name]
        row_bytes = info.nbytes // max(info.shape[0], 1)
        return self._read(name, (last - first, *info.shape[1:]), first * row_bytes)

    def read_into(self, name: str, begin: int, target: np.ndarray) -> None:
        """Fill `target`, uint8, with the tensor's bytes from `begin` on. Raises `ModelError`, also past its end."""
        if begin + len(target) > self.header.tensors[name].nbytes:
            raise ModelError("the tensor ends before what is read of it", file=self.path, key=name)
        with self._lock:
            self._fill(memoryview(target), self.begin(name) + begin, key=name)

    def begin(self, name: str) -> int:
        """Where the tensor's bytes begin in the file."""
        return self._data_begin + self.header.begins[name]

    def _read(self, name: str, shape: tuple[int, ...], begin: int) -> np.ndarray:
        """An array of that shape from byte `begin` of the tensor on."""
        try:
            array = np.empty(shape, NUMPY_DTYPES[self.header.tensors[name].dtype])
        except MemoryError:
            what = f"no memory for {math.prod(shape):,} numbers of a tensor"
            raise OutOfMemoryError(what, file=self.path, key=name) from None
        if array.nbytes:
            view = memoryview(array.reshape(-1).view(np.uint8))
            with self._lock:
                self._fill(view, self.begin(name) + begin, key=name)
        return array

    def close(self) -> None:
        """Give the file descriptor back; the next read opens the file again."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def __del__(self) -> None:
        self.close()

    def _open(self) -> int:
        """The file descriptor, opened where it is not; it must be the file whose header was checked."""
        if self._descriptor is not None:
            return self._descriptor
        try:
            descriptor = os.open(self.path, _FLAGS)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be read ({error})", file=self.path) from None
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelError("not a regular file", file=self.path)
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._identity not in (None, identity):
            raise ModelError("the file was replaced or changed after it was opened", file=self.path)
        self._identity = identity
        self.file_bytes = status.st_size
        return descriptor

    def _read_header(self, descriptor: int) -> Header:
        with self._lock:
            start = bytearray(min(self.file_bytes, 32))
            self._fill(memoryview(start), 0)
            for magic, (what, hint) in MAGICS.items():
                if start.startswith(magic):
                    raise ModelError(what, file=self.path, hint=hint)
            length = header_length(bytes(start), self.file_bytes, self.path)
            text = bytearray(min(length, MAX_HEADER_BYTES))
            self._fill(memoryview(text), PREFIX_BYTES)
        self._data_begin = PREFIX_BYTES + length
        return parse_header(bytes(text), self.file_bytes - self._data_begin, self.path)

    def _library_agrees(self) -> None:
        """A second opinion on the header, by the reference implementation."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="numpy", backend="pread"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"the safetensors library refuses it ({error})", file=self.path) from None

    def _fill(self, view: memoryview, offset: int, key: str | None = None) -> None:
        """Read `len(view)` bytes at `offset`; the lock is held."""
        descriptor = self._open()
        try:
            if os.fstat(descriptor).st_size != self.file_bytes:
                raise ModelError("the file changed its size after it was opened", file=self.path, key=key)
            done = 0
            while done < len(view):
                count = _read_at(descriptor, view[done : done + _CHUNK_BYTES], offset + done)
                if count == 0:
                    raise ModelError("the file was truncated while it was read", file=self.path, key=key)
                done += count
        except OSError as error:
            raise ModelError(f"reading failed ({error})", file=self.path, key=key) from None


def _read_at(descriptor: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], offset)
    os.lseek(descriptor, offset, os.SEEK_SET)  # Windows: the caller's lock makes the pair one step
    data = os.read(descriptor, len(view))
    view[: len(data)] = data
    return len(data)

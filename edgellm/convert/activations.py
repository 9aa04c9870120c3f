"""Activations of all calibration tokens: in memory, or in a file where memory is short."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgellm.errors import OutputError, UsageError


class Activations:
    """float32 [N sequences, L tokens, width], read and written by ranges of sequences and tokens.

    Args:
        sequences, tokens, width: N, L and the width of a row.
        path: a file to keep them in; None keeps them in memory. The file is read and written, never mapped, so that
            its pages are the system's and not this process's.
    """

    def __init__(self, sequences: int, tokens: int, width: int, path: Path | None = None) -> None:
        self.shape = (sequences, tokens, width)
        self.path = path
        self._array = np.empty(self.shape, np.float32) if path is None else None
        self._file = None
        self._lock = threading.Lock()  # between finding a place in the file and using it
        if path is not None:
            try:
                self._file = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115
                self._file.truncate(self.nbytes)
            except OSError as error:
                raise OutputError(f"activations cannot be kept there ({error})", file=path) from None

    @property
    def nbytes(self) -> int:
        """Bytes, in memory or in the file."""
        sequences, tokens, width = self.shape
        return 4 * sequences * tokens * width

    def read(self, first: int, last: int) -> np.ndarray:
        """Sequences `first` up to, not including, `last`: float32 [n, L, width]; do not write into it."""
        return self.part(slice(first, last), slice(0, self.shape[1]))

    def write(self, first: int, values: np.ndarray) -> None:
        """Store float32 [n, L, width] as the sequences from `first` on. Raises `OutputError` where the disk is full."""
        if values.shape[1:] != self.shape[1:] or first + len(values) > self.shape[0]:
            raise UsageError("does not fit", key="activations", found=list(values.shape), allowed=str(list(self.shape)))
        self.put(slice(first, first + len(values)), slice(0, self.shape[1]), values)

    def part(self, rows: slice, span: slice) -> np.ndarray:
        """Tokens `span` of sequences `rows`: float32 [n, t, width]; do not write into it. Any thread may ask."""
        if self._array is not None:
            return self._array[rows, span]
        found = np.empty((rows.stop - rows.start, span.stop - span.start, self.shape[2]), np.float32)
        with self._lock:
            for begin, view in self._places(rows, span, found):
                self._file.seek(begin)
                while view:
                    got = self._file.readinto(view)
                    if not got:
                        raise OutputError("activations were cut short by somebody else", file=self.path)
                    view = view[got:]
        return found

    def put(self, rows: slice, span: slice, values: np.ndarray) -> None:
        """Store float32 [n, t, width] as tokens `span` of sequences `rows`. Any thread may. Raises `OutputError`."""
        if self._array is not None:
            self._array[rows, span] = values
            return
        values = np.ascontiguousarray(values, np.float32)
        try:
            with self._lock:
                for begin, view in self._places(rows, span, values):
                    self._file.seek(begin)
                    while view:
                        view = view[self._file.write(view) :]
        except OSError as error:
            raise OutputError(f"activations cannot be kept there ({error})", file=self.path) from None

    def _places(self, rows: slice, span: slice, values: np.ndarray) -> Iterator[tuple[int, memoryview]]:
        """(offset in the file, bytes) of the stretches that [rows, span] lies in."""
        _, length, width = self.shape
        whole = span == slice(0, length)
        for number in [rows.start] if whole else range(rows.start, rows.stop):
            part = values if whole else values[number - rows.start]
            if part.size:
                yield 4 * width * (length * number + span.start), memoryview(part).cast("B")

    def digest(self) -> str:
        """sha256 of all values."""
        digest = hashlib.sha256()
        for number in range(self.shape[0]):
            digest.update(memoryview(np.ascontiguousarray(self.read(number, number + 1))).cast("B"))
        return digest.hexdigest()

    def close(self, *, delete: bool = True) -> None:
        """Free the memory, close the file and, unless `delete` is false, remove it."""
        self._array = None
        if self._file is not None:
            self._file.close()
            self._file = None
            if delete:
                self.path.unlink(missing_ok=True)

"""What a GPU can do: how fast it copies its own memory, the yardstick that kernels are measured by."""

from __future__ import annotations

from types import TracebackType

from edgellm.backends.cuda.device import open_device
from edgellm.backends.cuda.memory import Pool
from edgellm.backends.cuda.stream import Stream

#: Bytes that are copied at a time: far beyond any second-level cache.
COPY_BYTES = 512 << 20
#: Of the memory that is free, what the yardstick may take at most: this part.
_PART = 8


class Yardstick:
    """Two stretches of device memory; use it as a context manager, so that they go again.

    Raises:
        BackendUnavailable, OutOfMemoryError: no such GPU, or no memory free.
    """

    def __init__(self, index: int, copy_bytes: int = COPY_BYTES) -> None:
        device = open_device(index)
        self._stream, self._pool = Stream(device), Pool(device, "the yardstick")
        self._nbytes = min(copy_bytes, device.free_bytes() // _PART) // 512 * 512
        self._source, self._target = self._pool.allocate(self._nbytes), self._pool.allocate(self._nbytes)
        with device:
            for address in (self._source, self._target):
                self._stream.fill(address, self._nbytes)
            self._stream.wait()

    def __enter__(self) -> Yardstick:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()

    def copy_bandwidth(self, seconds: float) -> float:
        """Bytes a second, read and written both counted, the best of copies for about `seconds`."""
        best, spent = 0.0, 0.0
        while spent < seconds:
            took = self._stream.time(lambda: self._stream.copy(self._target, self._source, self._nbytes))
            best, spent = max(best, 2 * self._nbytes / took), spent + max(took, 1e-3)
        return best

"""A stream of work for the device, and events that mark places in it."""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Callable

import numpy as np

from edgellm.backends.cuda.device import Device
from edgellm.backends.interface import StepStopped, Stopped

_NON_BLOCKING = 1
_EVENT_DEFAULT = 0
#: Seconds between two looks at a long step, which somebody may have stopped.
_LOOK_SECONDS = 0.002


class Stream:
    """Work that the device does in the order it was given, beside other streams. The context must be current.

    Attributes:
        device: of the stream.
        handle: the driver's.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._calls = device.driver
        with device:
            self.handle = self._calls.new_handle("cuStreamCreate", _NON_BLOCKING)
        self._synchronize = self._calls.raw("cuStreamSynchronize")
        weakref.finalize(self, destroy, device, "cuStreamDestroy_v2", self.handle).atexit = False

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy a contiguous array to the device; one in memory that is not pinned is staged before this returns."""
        self._calls.call("cuMemcpyHtoDAsync_v2", address, _address_of(array), array.nbytes, self.handle)

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy from the device into a contiguous array; there once the stream has been waited for."""
        self._calls.call("cuMemcpyDtoHAsync_v2", _address_of(array), address, array.nbytes, self.handle)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy on the device."""
        self._calls.call("cuMemcpyDtoDAsync_v2", target, source, nbytes, self.handle)

    def fill(self, address: int, nbytes: int, byte: int = 0) -> None:
        """Set every byte."""
        self._calls.call("cuMemsetD8Async", address, byte, nbytes, self.handle)

    def wait(self) -> None:
        """Until all work is done; what a kernel did wrong shows here."""
        code = self._synchronize(self.handle)
        if code:
            raise self._calls.error(code, "cuStreamSynchronize")

    def wait_or_stop(self, stopped: Stopped) -> None:
        """As `wait`, and when `stopped` says so, until the device has come to rest; then raises `StepStopped`."""
        asked = False
        while not self._calls.is_done("cuStreamQuery", self.handle):
            asked = asked or stopped()
            time.sleep(_LOOK_SECONDS)
        if asked or stopped():
            raise StepStopped

    def time(self, work: Callable[[], object]) -> float:
        """Seconds that the device takes for what `work` puts into this stream."""
        with self.device:
            begin, end = Event(self.device), Event(self.device)
            begin.record(self)
            work()
            end.record(self)
            return begin.seconds_to(end)


class Event:
    """A place in a stream's work that can be waited for and timed."""

    def __init__(self, device: Device) -> None:
        self._calls = device.driver
        with device:
            self.handle = self._calls.new_handle("cuEventCreate", _EVENT_DEFAULT)
        weakref.finalize(self, destroy, device, "cuEventDestroy_v2", self.handle).atexit = False

    def record(self, stream: Stream) -> None:
        """Mark what the stream was given so far."""
        self._calls.call("cuEventRecord", self.handle, stream.handle)

    def wait(self) -> None:
        """Until the device has come here."""
        self._calls.call("cuEventSynchronize", self.handle)

    def seconds_to(self, later: Event) -> float:
        """Seconds of device time from here to `later`; waits for it."""
        later.wait()
        milliseconds = ctypes.c_float()
        self._calls.call("cuEventElapsedTime", ctypes.byref(milliseconds), self.handle, later.handle)
        return milliseconds.value / 1000


def _address_of(array: np.ndarray) -> int:
    if not array.flags.c_contiguous:
        raise ValueError("copies need contiguous arrays")
    return array.ctypes.data


def destroy(device: Device, function: str, handle: int) -> None:
    """Give a handle back to the driver: what finalizers do."""
    with device:
        device.driver.raw(function)(handle)

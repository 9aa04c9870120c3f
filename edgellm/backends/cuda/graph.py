"""A run of launches recorded once and started by one call: what a decode step costs the host is then one launch."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from contextlib import suppress

from edgellm.backends.cuda.device import Device
from edgellm.backends.cuda.stream import Stream, destroy
from edgellm.errors import EdgeLLMError

#: Relaxed: other engines of the process go on, and memory that is collected meanwhile may be freed.
_CAPTURE_RELAXED = 2


class Graph:
    """What `work` puts into `stream`, recorded without being done. The modules of what it launches must outlive it.

    Attributes:
        nodes: launches and copies of it.

    Raises:
        BackendUnavailable: something in `work` cannot be recorded.
    """

    def __init__(self, stream: Stream, work: Callable[[], object]) -> None:
        device = stream.device
        calls = device.driver
        with device:
            calls.call("cuStreamBeginCapture_v2", stream.handle, _CAPTURE_RELAXED)
            try:
                work()
            except BaseException:
                with suppress(EdgeLLMError):  # the first error is the one that tells
                    destroy(device, "cuGraphDestroy", _end(stream))
                raise
            graph = _end(stream)
            try:
                self.nodes = _count(device, graph)
                self.handle = calls.new_handle("cuGraphInstantiateWithFlags", graph, 0)
            finally:
                destroy(device, "cuGraphDestroy", graph)
        self._start, self._stream, self._calls = calls.raw("cuGraphLaunch"), stream, calls
        weakref.finalize(self, destroy, device, "cuGraphExecDestroy", self.handle).atexit = False

    def launch(self) -> None:
        """Put all of it into the stream. The context must be current."""
        code = self._start(self.handle, self._stream.handle)
        if code:
            raise self._calls.error(code, "cuGraphLaunch")


def _end(stream: Stream) -> int:
    graph = ctypes.c_void_p()
    stream.device.driver.call("cuStreamEndCapture", stream.handle, ctypes.byref(graph))
    return graph.value or 0


def _count(device: Device, graph: int) -> int:
    number = ctypes.c_size_t()
    device.driver.call("cuGraphGetNodes", graph, None, ctypes.byref(number))
    return number.value

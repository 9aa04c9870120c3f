"""The fake driver's streams, events and graphs."""

from __future__ import annotations

import time
from typing import Any

from tools.ptx_emulator.driver_state import (
    CAPTURE_INVALIDATED,
    CAPTURE_UNSUPPORTED,
    INVALID_HANDLE,
    INVALID_VALUE,
    NOT_READY,
    DriverError,
    State,
    driver_function,
    number_of,
    put,
)
from tools.ptx_emulator.driver_work import Event, Graph, GraphExec, Stream, Work
from tools.ptx_emulator.errors import EmulatorError


class StreamCalls(State):
    """cuStream*, cuEvent*, cuGraph* and cuCtxSynchronize."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._default = Stream()

    # ---------------------------------------------------------------- queues
    def _stream(self, handle: object) -> Stream:
        if number_of(handle) in (0, 1, 2):  # the default streams
            return self._default
        return self.held(handle, Stream)

    def capturing(self, handle: object) -> bool:
        return self._stream(handle).capture is not None

    def enqueue(self, handle: object, work: Work) -> None:
        """Puts work into a stream, or into the graph that it records."""
        stream = self._stream(handle)
        if stream.broken:
            raise DriverError(CAPTURE_INVALIDATED)
        (stream.queue if stream.capture is None else stream.capture.works).append(work)

    def finish(self, handle: object) -> None:
        self._drain(self._stream(handle))

    def finish_all(self) -> None:
        for stream in [self._default, *(thing for thing in self.handles.values() if isinstance(thing, Stream))]:
            self._drain(stream)

    def _drain(self, stream: Stream, until: Work | None = None) -> None:
        while stream.queue:
            work = stream.queue.pop(0)
            try:
                work.run()
            except EmulatorError as error:
                stream.queue.clear()
                self.faulted(error)
                return
            if work.name:
                self.launched.append(work.name)
            if work.name in ("copy", "fill"):
                self.before = None
            if work is until:
                return

    def _not_captured(self, stream: Stream) -> None:
        """Waiting for a stream that is being recorded spoils the recording."""
        if stream.capture is not None:
            stream.broken = True
            raise DriverError(CAPTURE_UNSUPPORTED)

    # ---------------------------------------------------------------- streams
    @driver_function
    def cuStreamCreate(self, stream: Any, flags: int) -> int | None:
        if number_of(flags) not in (0, 1):
            return INVALID_VALUE
        _ = self.device
        put(stream, self.new_handle(Stream()))
        return None

    @driver_function
    def cuStreamDestroy_v2(self, stream: int) -> None:
        self._drain(self.drop(stream, Stream))

    @driver_function
    def cuStreamSynchronize(self, stream: int) -> None:
        found = self._stream(stream)
        self._not_captured(found)
        self._drain(found)

    @driver_function
    def cuStreamQuery(self, stream: int) -> int | None:
        """One piece of work is done at every question, so that a loop of questions ends."""
        found = self._stream(stream)
        self._not_captured(found)
        if not found.queue:
            return None
        self._drain(found, until=found.queue[0])
        return NOT_READY

    @driver_function
    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        marked = self.held(event, Event)
        self.enqueue(stream, Work("", lambda: self._reach(marked)))

    @driver_function
    def cuCtxSynchronize(self) -> None:
        _ = self.device
        self.finish_all()

    # ---------------------------------------------------------------- events
    def _reach(self, event: Event) -> None:
        if event.stream is not None and event.seconds is None and event.mark is not None:
            self._drain(event.stream, until=event.mark)

    @driver_function
    def cuEventCreate(self, event: Any, flags: int) -> None:
        put(event, self.new_handle(Event()))

    @driver_function
    def cuEventDestroy_v2(self, event: int) -> None:
        self.drop(event, Event)

    @driver_function
    def cuEventRecord(self, event: int, stream: int) -> None:
        marked, where = self.held(event, Event), self._stream(stream)

        def passed() -> None:
            marked.seconds = time.perf_counter()

        marked.stream, marked.seconds, marked.mark = where, None, Work("", passed)
        self.enqueue(stream, marked.mark)

    @driver_function
    def cuEventSynchronize(self, event: int) -> None:
        self._reach(self.held(event, Event))

    @driver_function
    def cuEventQuery(self, event: int) -> int | None:
        marked = self.held(event, Event)
        if marked.stream is None or marked.seconds is not None:
            return None
        if marked.stream.queue:
            self._drain(marked.stream, until=marked.stream.queue[0])
        return None if marked.seconds is not None else NOT_READY

    @driver_function
    def cuEventElapsedTime(self, milliseconds: Any, begin: int, end: int) -> int | None:
        first, last = self.held(begin, Event), self.held(end, Event)
        if first.stream is None or last.stream is None:
            return INVALID_HANDLE
        if first.seconds is None or last.seconds is None:
            return NOT_READY
        put(milliseconds, 1000 * (last.seconds - first.seconds))
        return None

    # ---------------------------------------------------------------- graphs
    @driver_function
    def cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int | None:
        found = self._stream(stream)
        if found is self._default or found.capture is not None or number_of(mode) not in (0, 1, 2):
            return CAPTURE_UNSUPPORTED
        found.capture, found.broken = Graph(), False
        return None

    @driver_function
    def cuStreamEndCapture(self, stream: int, graph: Any) -> int | None:
        found = self._stream(stream)
        recorded, broken = found.capture, found.broken
        found.capture, found.broken = None, False
        if recorded is None:
            return INVALID_VALUE
        if broken:
            put(graph, None)
            return CAPTURE_INVALIDATED
        put(graph, self.new_handle(recorded))
        return None

    @driver_function
    def cuGraphGetNodes(self, graph: int, nodes: Any, count: Any) -> int | None:
        if number_of(nodes):
            return INVALID_VALUE
        put(count, len(self.held(graph, Graph).works))
        return None

    @driver_function
    def cuGraphInstantiateWithFlags(self, executable: Any, graph: int, flags: int) -> None:
        put(executable, self.new_handle(GraphExec(list(self.held(graph, Graph).works))))

    @driver_function
    def cuGraphExecUpdate_v2(self, executable: int, graph: int, result: Any) -> int | None:
        """Takes over the other graph's arguments when it has the same work in the same order."""
        old, new = self.held(executable, GraphExec), self.held(graph, Graph)
        if [work.name for work in old.works] != [work.name for work in new.works]:
            return 910  # CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE
        old.works = list(new.works)
        return None

    @driver_function
    def cuGraphLaunch(self, executable: int, stream: int) -> None:
        for work in self.held(executable, GraphExec).works:
            self.enqueue(stream, work)

    @driver_function
    def cuGraphDestroy(self, graph: int) -> None:
        self.drop(graph, Graph)

    @driver_function
    def cuGraphExecDestroy(self, executable: int) -> None:
        self.drop(executable, GraphExec)

"""Steps made ready for one cache: graphs of decode steps, launches of prompts, with the cache's addresses in them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from edgellm.backends.cuda.attention import AttentionScratch
from edgellm.backends.cuda.cache import CachePlaces
from edgellm.backends.cuda.calls import Call
from edgellm.backends.cuda.device import Device
from edgellm.backends.cuda.graph import Graph
from edgellm.backends.cuda.lower import Model, StepShape, lower, lower_greedy, lower_logits
from edgellm.backends.cuda.module import Launch
from edgellm.backends.cuda.records import ids_in, records_in
from edgellm.backends.cuda.stream import Stream
from edgellm.backends.cuda.traced import TracedBuffers
from edgellm.backends.interface import Trace

#: Prompt lengths whose launches are kept.
_KEPT = 8


class Steps:
    """What a model does with one cache, which owns this and is not held by it, so that its memory is free as soon as
    nobody has it any more. The device's context must be current where work is put into the stream."""

    def __init__(self, device: Device, stream: Stream, model: Model, places: CachePlaces) -> None:
        self._model, self._places, self._stream = model, places, stream
        self._scratch = AttentionScratch(device, stream, model.program.config, places.geometry)
        self._decodes: dict[tuple[int, int | None], Graph] = {}
        self._prompts: OrderedDict[int, list[Launch]] = OrderedDict()
        self._host_logits: dict[int, np.ndarray] = {}
        self._has_logits = any(op.kind == "logits" for op in model.program.ops)

    def decode(self, rows: int, vocab_size: int | None = None) -> None:
        """Put one token of each of `rows` sequences into the stream, from `records_in` the pinned memory to
        `host_logits`; where `vocab_size` is given, to `host_tokens`, the likeliest of so many."""
        key = (rows, vocab_size)
        if key not in self._decodes:
            self._decodes[key] = self._capture(rows, vocab_size)
        self._decodes[key].launch()

    def prompt(self, rows: int) -> None:
        """Put `rows` tokens of one sequence into the stream; records and ids come from pinned memory."""
        space = self._model.space
        self._stream.upload(space.record, records_in(space.host.array)[:1])
        self._stream.upload(space.ids, ids_in(space.host.array)[:rows])
        for launch in self._prompt_launches(rows):
            launch.run(self._stream)

    def logits(self, first: int, rows: int) -> None:
        """Put the logits of a prompt's rows first .. first + rows - 1 into the stream, up to `host_logits`."""
        for launch in self._model.kernels.prepare(lower_logits(self._model, self._prompt_shape(rows), first, rows)):
            launch.run(self._stream)
        self._stream.download(self.host_logits(rows), self._model.space.logits)

    def traced(self, rows: int, wanted: Sequence[int], *, decode: bool, trace: Trace) -> np.ndarray | None:
        """A step op by op, each of which leaves its buffers for `trace`; gives the logits of the rows that are wanted.
        Records and ids are on the device already."""
        model, shape = self._model, StepShape(rows, decode, fused=False)
        calls, logits = lower(model, self._places, self._scratch, shape), None
        for index, op in enumerate(model.program.ops):
            for launch in model.kernels.prepare([call for call in calls if call.op == index]):
                launch.run(self._stream)
            if op.kind == "logits":
                logits = np.concatenate([self._logits_of(shape, row) for row in wanted])
            self._stream.wait()
            trace(index, TracedBuffers(model, self._stream, rows, logits))
        return logits

    def _logits_of(self, shape: StepShape, row: int) -> np.ndarray:
        for launch in self._model.kernels.prepare(lower_logits(self._model, shape, row, 1)):
            launch.run(self._stream)
        self._stream.download(self.host_logits(1), self._model.space.logits)
        self._stream.wait()
        return self.host_logits(1).copy()

    def host_logits(self, rows: int) -> np.ndarray:
        """Where the logits come back to, float32 [rows, vocab_size] of pinned memory."""
        if rows not in self._host_logits:
            vocab_size = self._model.program.config.vocab_size
            whole = self._model.space.host_logits.array.view(np.float32)[: rows * vocab_size]
            self._host_logits[rows] = whole.reshape(rows, vocab_size)
        return self._host_logits[rows]

    def host_tokens(self, rows: int) -> np.ndarray:
        """Where chosen tokens come back to, uint32 [rows] of pinned memory."""
        return self._model.space.host_logits.array.view(np.uint32)[:rows]

    def calls(self, rows: int, *, decode: bool) -> list[Call]:
        """The launches of a step, the logits of its rows, or a prompt's last, with them."""
        shape = StepShape(rows, decode)
        calls = lower(self._model, self._places, self._scratch, shape)
        if not self._has_logits:
            return calls
        return calls + lower_logits(self._model, shape, *((0, rows) if decode else (rows - 1, 1)))

    def launches(self, rows: int) -> int:
        """How many launches and copies the graph of a decode step has."""
        key = (rows, None)
        if key not in self._decodes:
            self._decodes[key] = self._capture(rows, None)
        return self._decodes[key].nodes

    def _capture(self, rows: int, vocab_size: int | None) -> Graph:
        model = self._model
        calls = self.calls(rows, decode=True)
        if vocab_size is not None:
            calls += lower_greedy(model, rows, vocab_size)
        launches = model.kernels.prepare(calls)

        def step() -> None:
            self._stream.upload(model.space.record, records_in(model.space.host.array)[:rows])
            for launch in launches:
                launch.run(self._stream)
            if vocab_size is not None:
                self._stream.download(self.host_tokens(rows), model.space.chosen)
            elif self._has_logits:
                self._stream.download(self.host_logits(rows), model.space.logits)

        return Graph(self._stream, step)

    def _prompt_shape(self, rows: int) -> StepShape:
        return StepShape(rows, decode=False)

    def _prompt_launches(self, rows: int) -> list[Launch]:
        if rows not in self._prompts:
            if len(self._prompts) >= _KEPT:
                self._prompts.popitem(last=False)
            calls = lower(self._model, self._places, self._scratch, self._prompt_shape(rows))
            self._prompts[rows] = self._model.kernels.prepare(calls)
        self._prompts.move_to_end(rows)
        return self._prompts[rows]

"""Steps made ready for one cache: graphs of decode steps, launches of prompts, with the cache's addresses in them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgellm.backends.cuda.attention import AttentionScratch
from edgellm.backends.cuda.cache import CachePlaces
from edgellm.backends.cuda.calls import Call
from edgellm.backends.cuda.device import Device
from edgellm.backends.cuda.graph import Graph
from edgellm.backends.cuda.kernels.record import MAX_BATCH
from edgellm.backends.cuda.lower import Model, StepShape, lower, lower_choice, lower_logits
from edgellm.backends.cuda.module import Launch, run_in_order
from edgellm.backends.cuda.records import ids_in, records_in
from edgellm.backends.cuda.stream import Stream
from edgellm.backends.cuda.traced import TracedBuffers
from edgellm.backends.interface import Trace

#: Prompt lengths whose launches are kept.
_KEPT = 8


class Wanted(NamedTuple):
    """What comes back of a step's rows.

    Attributes:
        logits: their logits.
        tokens: tokens, chosen as the records say; `limited`: some of them by top-k or top-p.
    """

    logits: bool = True
    tokens: bool = False
    limited: bool = False


LOGITS = Wanted()


class Steps:
    """What a model does with one cache, which owns this and is not held by it, so that its memory is free as soon as
    nobody has it any more. The device's context must be current where work is put into the stream."""

    def __init__(self, device: Device, stream: Stream, model: Model, places: CachePlaces) -> None:
        self._model, self._places, self._stream = model, places, stream
        self._scratch = AttentionScratch(device, stream, model.program.config, places.geometry)
        self._decodes: dict[tuple[int, Wanted], Graph] = {}
        self._prompts: OrderedDict[int, list[Launch]] = OrderedDict()
        self._host_logits: dict[int, np.ndarray] = {}
        self._has_logits = any(op.kind == "logits" for op in model.program.ops)
        self._host_tokens = model.space.host_chosen.array.view(np.uint32)[:MAX_BATCH]

    def decode(self, rows: int, wanted: Wanted = LOGITS) -> None:
        """Put one token of each of `rows` sequences into the stream, from `records_in` the pinned memory to
        `host_logits` and `host_tokens`."""
        self._decode_graph(rows, wanted).launch()

    def _decode_graph(self, rows: int, wanted: Wanted) -> Graph:
        key = (rows, wanted)
        if key not in self._decodes:
            self._decodes[key] = self._capture(rows, wanted)
        return self._decodes[key]

    def prompt(self, rows: int) -> None:
        """Put `rows` tokens of one sequence into the stream; records and ids come from pinned memory."""
        space = self._model.space
        self._stream.upload(space.record, records_in(space.host.array)[:1])
        self._stream.upload(space.ids, ids_in(space.host.array)[:rows])
        run_in_order(self._prompt_launches(rows), self._stream)

    def logits(self, first: int, rows: int, wanted: Wanted = LOGITS) -> None:
        """Put the logits of a prompt's rows first .. first + rows - 1 into the stream, up to `host_logits`, or the
        token that record 0 chooses, up to `host_tokens`."""
        calls = lower_logits(self._model, self._prompt_shape(rows), first, rows)
        run_in_order(self._model.kernels.prepare(calls + self._choice(rows, wanted)), self._stream)
        self._bring(rows, wanted)

    def _choice(self, rows: int, wanted: Wanted) -> list[Call]:
        return lower_choice(self._model, rows, limited=wanted.limited) if wanted.tokens else []

    def _bring(self, rows: int, wanted: Wanted) -> None:
        if wanted.tokens:
            self._stream.download(self.host_tokens(rows), self._model.space.chosen)
        if wanted.logits:
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
            whole = self._model.space.host_chosen.array.view(np.float32)[MAX_BATCH:]
            self._host_logits[rows] = whole[: rows * vocab_size].reshape(rows, vocab_size)
        return self._host_logits[rows]

    def host_tokens(self, rows: int) -> np.ndarray:
        """Where chosen tokens come back to, uint32 [rows] of pinned memory."""
        return self._host_tokens[:rows]

    def calls(self, rows: int, *, decode: bool) -> list[Call]:
        """The launches of a step, the logits of its rows, or a prompt's last, with them."""
        shape = StepShape(rows, decode)
        calls = lower(self._model, self._places, self._scratch, shape)
        if not self._has_logits:
            return calls
        return calls + lower_logits(self._model, shape, *((0, rows) if decode else (rows - 1, 1)))

    def launches(self, rows: int, wanted: Wanted = LOGITS) -> int:
        """How many launches and copies the graph of a decode step has."""
        return self._decode_graph(rows, wanted).nodes

    def _capture(self, rows: int, wanted: Wanted) -> Graph:
        model = self._model
        launches = model.kernels.prepare(self.calls(rows, decode=True) + self._choice(rows, wanted))

        def step() -> None:
            self._stream.upload(model.space.record, records_in(model.space.host.array)[:rows])
            run_in_order(launches, self._stream)
            if self._has_logits:
                self._bring(rows, wanted)

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

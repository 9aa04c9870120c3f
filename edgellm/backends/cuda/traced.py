"""What a trace sees: buffers on the device, by name, brought here when somebody looks at them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgellm.backends.cuda.lower import Model
from edgellm.backends.cuda.packing import slot_of
from edgellm.backends.cuda.space import View
from edgellm.backends.cuda.stream import Stream


class TracedBuffers(Mapping[str, np.ndarray]):
    """Buffers after an op, float32 [rows, width].

    Args:
        logits: those of the rows that are wanted, once there are any.
    """

    def __init__(self, model: Model, stream: Stream, rows: int, logits: np.ndarray | None) -> None:
        self._model, self._stream, self._rows, self._logits = model, stream, rows, logits
        self._pairs = {
            op.outputs[half]: (matrix.layout, half)
            for op in model.program.ops
            if op.kind == "linear" and (matrix := model.weights.matrices.get(op.weights[0])) is not None
            for half in (0, 1)
            if matrix.plan.paired
        }

    def __getitem__(self, name: str) -> np.ndarray:
        if name == "logits" and self._logits is not None:
            return self._logits
        if name in self._pairs:
            layout, half = self._pairs[name]
            slots = self._read(self._model.space.pairs(layout))
            return slots[:, slot_of(np.arange(layout.rows // 2), half)]
        return self._read(self._model.space.buffers[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.space.buffers)

    def __len__(self) -> int:
        return len(self._model.space.buffers)

    def _read(self, view: View) -> np.ndarray:
        """A view may end inside the last row of its block, so that is read no further than its own width."""
        found = np.empty((self._rows - 1) * view.stride + view.width, np.float32)
        self._stream.download(found, view.address)
        self._stream.wait()
        whole = np.zeros(self._rows * view.stride, np.float32)
        whole[: found.size] = found
        return whole.reshape(self._rows, view.stride)[:, : view.width].copy()

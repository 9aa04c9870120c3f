"""Scratch of the steps in device memory: a place for each buffer of the program, records, token ids, logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgellm.backends.cuda.device import Device
from edgellm.backends.cuda.kernels.record import MAX_BATCH, RECORD_WORDS
from edgellm.backends.cuda.layout import TILE_ROWS, LinearLayout
from edgellm.backends.cuda.matrices import MatrixPlan
from edgellm.backends.cuda.memory import ALIGNMENT, HostBuffer, Pool
from edgellm.model.program import Program

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class View:
    """A buffer, float32 [rows][stride], of which `width` elements a row are its own."""

    address: int
    stride: int
    width: int


@dataclass(frozen=True)
class HalfView:
    """Activations as the prefill kernels read them: float16 [rows][stride] times float32 `scales` [rows]."""

    address: int
    scales: int
    stride: int


@dataclass(frozen=True)
class BufferPlan:
    """Where buffers lie: `blocks` has each block's bytes a row, `places` (block, element, stride, width) by name."""

    blocks: tuple[int, ...]
    places: dict[str, tuple[int, int, int, int]]

    @property
    def row_bytes(self) -> int:
        return sum(self.blocks)


def plan_buffers(program: Program, matrices: Sequence[MatrixPlan]) -> BufferPlan:
    """Buffers that one matrix writes lie side by side in the rows of one block, all others by themselves."""
    blocks: list[int] = []
    places: dict[str, tuple[int, int, int, int]] = {}
    together = [plan.outputs for plan in matrices if len(plan.outputs) > 1]
    for names in [*dict.fromkeys(together), *((name,) for name in program.buffers)]:
        names = [name for name in names if name in program.buffers and name not in places]
        stride = sum(program.buffers[name] for name in names)
        at = 0
        for name in names:
            places[name] = (len(blocks), at, stride, program.buffers[name])
            at += program.buffers[name]
        if names:
            blocks.append(_FLOAT_BYTES * stride)
    return BufferPlan(tuple(blocks), places)


class Space:
    """Scratch for steps of up to `rows` rows.

    Attributes:
        rows: the most rows of a step.
        buffers: views by name.
        numbered: queries turned to their tokens' numbers, as `q` is laid out but by itself.
        half: room for a product's input, float16 of the widest, and its scales.
        record, ids: where the step records and the token ids of a prefill step lie.
        logits: float32 [MAX_BATCH][vocab_size].
        thresholds, best_values, best_tokens, chosen: of tokens chosen on the device: float32 [MAX_BATCH], [MAX_BATCH]
            [multiprocessors] of both, and u32 [MAX_BATCH].
        host: what is uploaded: records, then ids; pinned.
        host_chosen: where chosen tokens, u32 [MAX_BATCH], and then logits come back to; pinned.

    Raises:
        OutOfMemoryError: the device has no memory for it.
    """

    def __init__(self, device: Device, program: Program, matrices: Sequence[MatrixPlan], rows: int) -> None:
        config = program.config
        self.rows = rows
        self._pool = Pool(device, "scratch")
        plan = plan_buffers(program, matrices)
        blocks = [self._pool.allocate(nbytes * rows) for nbytes in plan.blocks]
        self.buffers = {
            name: View(blocks[block] + _FLOAT_BYTES * at, stride, width)
            for name, (block, at, stride, width) in plan.places.items()
        }
        self.numbered = self._view(config.num_attention_heads * config.head_dim, rows)
        self.half = HalfView(self._pool.allocate(2 * _widest(matrices) * rows), self._pool.allocate(4 * rows), 0)
        self.record = self._pool.allocate(_FLOAT_BYTES * MAX_BATCH * RECORD_WORDS)
        self.ids = self._pool.allocate(_FLOAT_BYTES * rows)
        self.logits = self._pool.allocate(_FLOAT_BYTES * MAX_BATCH * config.vocab_size)
        best = _FLOAT_BYTES * MAX_BATCH * device.properties.multiprocessors
        self.best_values, self.best_tokens = self._pool.allocate(best), self._pool.allocate(best)
        self.chosen, self.thresholds = (self._pool.allocate(_FLOAT_BYTES * MAX_BATCH) for _ in range(2))
        self.host = HostBuffer(device, _FLOAT_BYTES * (MAX_BATCH * RECORD_WORDS + rows))
        self.host_chosen = HostBuffer(device, _FLOAT_BYTES * MAX_BATCH * (1 + config.vocab_size))
        self.nbytes = self._pool.nbytes
        self._pairs: dict[int, View] = {}

    def pairs(self, layout: LinearLayout) -> View:
        """Room for every slot of a paired matrix, made when a trace first asks for it."""
        slots = TILE_ROWS * layout.row_tiles
        if slots not in self._pairs:
            self._pairs[slots] = self._view(slots, self.rows)
        return self._pairs[slots]

    def close(self) -> None:
        """Free the device's part."""
        self._pool.close()

    def _view(self, width: int, rows: int) -> View:
        return View(self._pool.allocate(_FLOAT_BYTES * width * rows), width, width)


def space_nbytes(program: Program, matrices: Sequence[MatrixPlan], rows: int) -> tuple[int, int]:
    """Bytes that a `Space` takes: of the device, and of pinned host memory."""
    config = program.config
    heads = config.num_attention_heads * config.head_dim
    words = rows * (heads + 2 + _widest(matrices) // 2 + 1) + MAX_BATCH * (config.vocab_size + RECORD_WORDS)
    places = len(plan_buffers(program, matrices).blocks) + 40
    host = _FLOAT_BYTES * (MAX_BATCH * (RECORD_WORDS + 1 + config.vocab_size) + rows)
    return plan_buffers(program, matrices).row_bytes * rows + _FLOAT_BYTES * words + places * ALIGNMENT, host


def _widest(matrices: Sequence[MatrixPlan]) -> int:
    return max((plan.layout.inputs for plan in matrices), default=0)

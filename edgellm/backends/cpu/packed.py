"""All weights of a program in one arena, read and packed piece by piece for this processor's lanes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from edgellm.backends.cpu.arena import Arena
from edgellm.backends.cpu.layout import LinearKind, LinearLayout
from edgellm.backends.cpu.packed_plan import piece_rows, plan_packing
from edgellm.backends.cpu.packing import (
    dense_factor,
    factor_fits,
    layout_of,
    pack_linear,
    pack_rows,
    write_head,
)
from edgellm.backends.cpu.packing_jobs import PackingJobs
from edgellm.backends.interface import Progress
from edgellm.errors import OutOfMemoryError
from edgellm.formats import QuantizedTensor, StoredTensor
from edgellm.model.program import Program, WeightSpec
from edgellm.model.weights import Weights

_DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16"}


@dataclass(frozen=True)
class PackedLinear:
    """A weight in the arena.

    Attributes:
        layout: of its bytes.
        offset: where they begin.
        factor: of the whole weight, see `layout.py`.
        bias: where its bias begins, float32 for whole blocks of rows, None without.
        permutation: order in which it wants its inputs, None for the order of the buffer.
    """

    layout: LinearLayout
    offset: int
    factor: float
    bias: int | None = None
    permutation: np.ndarray | None = None


@dataclass(frozen=True)
class PackedWeights:
    """The packed weights of a model and what lies where in them.

    Attributes:
        data: uint8, the arena; may be longer than what is in use.
        nbytes: in use.
        linears: by name; "embed_tokens" among them, and "lm_head" is the same one where it is tied.
        vectors: offset of each norm's float32 numbers, by name.
    """

    data: np.ndarray
    nbytes: int
    linears: dict[str, PackedLinear]
    vectors: dict[str, int]

    def describe_head(self) -> dict[str, str | int]:
        """What the lm_head is stored as, "int4", "int8" or "float16", and its bytes."""
        layout = self.linears["lm_head"].layout
        return {"lm_head": layout.stored_name, "lm_head_bytes": layout.nbytes}


def pack_weights(
    program: Program, weights: Weights, head: str = "int8", progress: Progress | None = None, threads: int = 1
) -> PackedWeights:
    """Read all weights that a program needs and pack them.

    A dense weight is read in pieces of rows, a quantized one as it is stored, without a byte a code; what is held
    beside the arena at any time is a piece a thread, or a quantized linear a thread, never more than the largest tensor
    of the file.

    Args:
        program: what is needed.
        weights: where it is read.
        head: how the embedding and an unquantized lm_head are stored, see `packed_plan.HEAD_BITS`.
        progress: told of the bytes packed, by the calling thread.
        threads: that pack.

    Raises:
        ModelError: a tensor is damaged.
        OutOfMemoryError: there is no memory for them.
        UsageError: no such head.
    """
    packer = _Packer(program, weights, head, progress, threads)
    return PackedWeights(packer.arena.bytes, packer.arena.used_bytes, packer.linears, packer.vectors)


class _Packer:
    """Packs all weights of a program; the arguments are those of `pack_weights`."""

    def __init__(self, program: Program, weights: Weights, head: str, progress: Progress | None, threads: int) -> None:
        self._weights = weights
        self._plan = plan_packing(program, weights, head)
        total = self._plan.nbytes
        self.arena = Arena(total)
        self.linears: dict[str, PackedLinear] = {}
        self.vectors: dict[str, int] = {}
        self._dense: list[_Dense] = []
        with PackingJobs(self._plan.threads_at_work(threads), progress, total) as self._jobs:
            for name, spec in program.weights.items():
                self._named(name, self._begin, name, spec)
            self._jobs.drain()
            for dense in self._dense:
                self._finish(dense)
        if progress is not None:
            progress(total, total)

    def _named(self, name: str, work: Callable[..., None], *args: object) -> None:
        try:
            work(*args)
        except MemoryError:
            raise OutOfMemoryError("no memory to pack a weight", key=name) from None

    def _begin(self, name: str, spec: WeightSpec) -> None:
        """Take a weight's place, and have it packed."""
        weights = self._weights
        if spec.kind == "vector":
            self.vectors[name] = self.arena.put(weights.vector(name))
        elif name == "lm_head" and weights.lm_head_is_embedding:
            if "embed_tokens" in self.linears:
                self.linears[name] = self.linears["embed_tokens"]
            else:  # a part of a program, which begins behind its embedding
                self._begin_dense(name, self._plan.layouts[name], partial(weights.rows, "embed_tokens"))
        elif weights.is_dense(name):
            self._begin_dense(name, self._plan.layouts[name], partial(weights.rows, name))
        else:
            self._begin_quantized(name, weights.stored(name))

    def _begin_quantized(self, name: str, weight: StoredTensor | QuantizedTensor) -> None:
        layout = layout_of(weight)
        if layout.kind == LinearKind.F16:  # dequantized: the inputs come back in their own order
            self._jobs.drain()
            whole = self._weights.linear(name).dequantize()
            self._begin_dense(name, layout, lambda first, last: whole[first:last])
            self._jobs.drain()
            self._finish(self._dense.pop())  # at once: what is kept for later keeps its source
            return
        place = self._place(name, layout, weight.permutation)

        def pack() -> None:
            packed = self.linears[name]
            self.linears[name] = replace(packed, factor=pack_linear(weight, place, layout))

        self._jobs.submit(layout.nbytes, partial(self._named, name, pack))
        if isinstance(weight, QuantizedTensor):  # its codes were read whole: one of those at a time
            self._jobs.drain()

    def _begin_dense(self, name: str, layout: LinearLayout, rows: Callable[[int, int], np.ndarray]) -> None:
        place = self._place(name, layout, None)
        write_head(place, layout)
        dense = _Dense(name, layout, place, rows, [])
        self._dense.append(dense)
        self._pack_pieces(dense, dense_factor(layout))

    def _place(self, name: str, layout: LinearLayout, permutation: np.ndarray | None) -> np.ndarray:
        """Where a weight goes, its bias put behind it."""
        offset = self.arena.take(layout.nbytes)
        bias, bias_at = None, None
        if self._weights.program.weights[name].kind == "linear":
            bias = self._weights.bias(name)
        if bias is not None:
            padded = np.zeros(layout.blocks * layout.lanes, np.float32)
            padded[: len(bias)] = bias
            bias_at = self.arena.put(padded)
        self.linears[name] = PackedLinear(layout, offset, dense_factor(layout), bias_at, permutation)
        return self.arena.bytes[offset : offset + layout.nbytes]

    def _pack_pieces(self, dense: _Dense, factor: float, *, counts: bool = True) -> None:
        layout = dense.layout
        step = piece_rows(layout)
        for first in range(0, layout.rows, step):
            last = min(first + step, layout.rows)
            height = -(-(last - first) // layout.lanes)
            nbytes = sum(height * part.block_bytes for _, part in layout.slices) if counts else 0
            self._jobs.submit(nbytes, partial(self._named, dense.name, dense.pack, first, last, factor))

    def _finish(self, dense: _Dense) -> None:
        """Pack a weight again whose magnitudes are not the usual ones."""
        largest = max(dense.largest, default=0.0)
        if factor_fits(largest):
            return
        factor = dense_factor(dense.layout, largest)
        self._pack_pieces(dense, factor, counts=False)
        self._jobs.drain()
        usual = self.linears[dense.name]
        anew = replace(usual, factor=factor)
        # a tied head is its embedding
        self.linears.update({name: anew for name, linear in self.linears.items() if linear is usual})


@dataclass(frozen=True)
class _Dense:
    """A dense weight that is being packed: its rows' source, and the largest magnitude of each piece so far."""

    name: str
    layout: LinearLayout
    place: np.ndarray
    rows: Callable[[int, int], np.ndarray]
    largest: list[float]

    def pack(self, first: int, last: int, factor: float) -> None:
        """The rows first..last-1, whole bands but for the last."""
        stored, layout = self.rows(first, last), self.layout
        self.largest.append(pack_rows(stored, _DTYPES[stored.dtype.name], self.place, layout, factor, first))

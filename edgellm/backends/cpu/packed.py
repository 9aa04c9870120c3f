"""All weights of a program in one arena: read one tensor at a time, packed for this processor's lanes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgellm.backends.cpu.arena import Arena
from edgellm.backends.cpu.layout import LinearLayout, round_up
from edgellm.backends.cpu.packing import layout_of, pack_linear, plan_linear
from edgellm.backends.interface import Progress
from edgellm.errors import OutOfMemoryError
from edgellm.formats import QuantizedTensor
from edgellm.model.program import Program, WeightSpec
from edgellm.model.weights import Weights

#: Bits that a dense linear is stored with, but for the lm_head.
DENSE_BITS = 16
_FLOAT_BYTES = 4


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


class PackedWeights:
    """The arena and what lies where in it.

    Attributes:
        data: uint8, the arena.
        linears: by name; "embed_tokens" among them, and "lm_head" is the same one where it is tied.
        vectors: offset of each norm's float32 numbers, by name.
        nbytes: in use.

    Args:
        program: what is needed.
        weights: where it is read.
        head_bits: of the embedding and of an unquantized lm_head, 8 or 16.
        progress: told of the bytes packed.

    Raises:
        ModelError: a tensor is damaged.
        OutOfMemoryError: there is no memory for them.
    """

    def __init__(self, program: Program, weights: Weights, head_bits: int, progress: Progress | None = None) -> None:
        self._weights = weights
        self._head_bits = head_bits
        total = planned_bytes(program, weights, head_bits)
        self._arena = Arena(total)
        self.linears: dict[str, PackedLinear] = {}
        self.vectors: dict[str, int] = {}
        for name, spec in program.weights.items():
            try:
                self._pack(name, spec)
            except MemoryError:
                raise OutOfMemoryError("no memory to pack a weight", key=name) from None
            if progress is not None:
                progress(min(self._arena.used_bytes, total), total)
        if progress is not None:
            progress(total, total)

    @property
    def data(self) -> np.ndarray:
        return self._arena.bytes

    @property
    def nbytes(self) -> int:
        return self._arena.used_bytes

    def _pack(self, name: str, spec: WeightSpec) -> None:
        weights = self._weights
        if spec.kind == "vector":
            self.vectors[name] = self._arena.put(weights.vector(name))
        elif spec.kind == "embedding":
            self.linears[name] = self._pack_linear(weights.embedding(), self._head_bits)
        elif name == "lm_head" and weights.lm_head_is_embedding:
            self.linears[name] = self.linears["embed_tokens"]
        else:
            bits = self._head_bits if name == "lm_head" else DENSE_BITS
            self.linears[name] = self._pack_linear(weights.linear(name), bits, weights.bias(name))

    def _pack_linear(
        self, weight: QuantizedTensor | np.ndarray, dense_bits: int, bias: np.ndarray | None = None
    ) -> PackedLinear:
        layout = layout_of(weight, dense_bits)
        offset = self._arena.take(layout.nbytes)
        factor = pack_linear(weight, self.data[offset : offset + layout.nbytes], layout)
        bias_at = None
        if bias is not None:
            padded = np.zeros(layout.blocks * layout.lanes, np.float32)
            padded[: len(bias)] = bias
            bias_at = self._arena.put(padded)
        # a dense layout dequantizes, and that puts the inputs back into their own order
        permuted = isinstance(weight, QuantizedTensor) and layout.group > 1
        return PackedLinear(layout, offset, factor, bias_at, weight.permutation if permuted else None)


def planned_bytes(program: Program, weights: Weights, head_bits: int) -> int:
    """The most bytes that the arena of a program takes, from headers alone."""
    total = 0
    for name, spec in program.weights.items():
        if spec.kind == "vector":
            total += round_up(_FLOAT_BYTES * spec.shape[0], 64)
            continue
        for layout in _planned(name, spec, weights, head_bits):
            total += layout.nbytes + round_up(_FLOAT_BYTES * layout.blocks * layout.lanes, 64)
    return total


def _planned(name: str, spec: WeightSpec, weights: Weights, head_bits: int) -> Iterator[LinearLayout]:
    rows, inputs = spec.shape
    if spec.kind == "embedding":
        yield plan_linear(rows, inputs, head_bits)
    elif not (name == "lm_head" and weights.lm_head_is_embedding):
        stored = weights.describe(name)
        if "group_size" not in stored:
            yield plan_linear(rows, inputs, head_bits if name == "lm_head" else DENSE_BITS)
        else:
            group_size = stored["group_size"] if stored["group_size"] > 0 else inputs
            yield plan_linear(rows, inputs, stored["bits"], group_size)

"""Weights on the device: each is read, packed and uploaded before the next, so never two copies of a model are held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgellm.backends.cuda.device import Device
from edgellm.backends.cuda.kernels.turns import turn_words
from edgellm.backends.cuda.layout import LinearLayout
from edgellm.backends.cuda.matrices import STORED_NAMES, MatrixPlan
from edgellm.backends.cuda.memory import ALIGNMENT, BLOCK, Pool
from edgellm.backends.cuda.packing import PackedLinear, pack_linear, slot_of
from edgellm.backends.cuda.stream import Stream
from edgellm.backends.interface import Progress
from edgellm.formats import QuantizedTensor
from edgellm.model.program import Program
from edgellm.model.rope import Rope
from edgellm.model.weights import Weights

_NUMBER_BYTES = 4
_HEAD = "lm_head"
_EMBEDDING = "embed_tokens"


@dataclass(frozen=True)
class Matrix:
    """A packed matrix in device memory.

    Attributes:
        plan: what is in it.
        layout: of its bytes.
        tiles, scales, zeros: where they lie; 0 where there are none.
        bias: float32 [row tiles * 16] in the order of slots, 0 without.
        order: u32 [inputs], the input that each column belongs to, 0 for the order of the buffer.
        zero: the zero point of the whole matrix, where groups have none of their own.
        factor: of the whole matrix.
    """

    plan: MatrixPlan
    layout: LinearLayout
    tiles: int
    scales: int
    zeros: int
    bias: int
    order: int
    zero: int
    factor: float


class DeviceWeights:
    """All weights of a program.

    Attributes:
        matrices: by the first name in each; "lm_head" is the embedding's where it is tied.
        vectors: addresses of each norm's float32 numbers, by name.

    Raises:
        ModelError: a tensor is damaged.
        OutOfMemoryError: the device has no memory for them.
    """

    def __init__(
        self,
        device: Device,
        program: Program,
        weights: Weights,
        plans: Sequence[MatrixPlan],
        progress: Progress | None = None,
    ) -> None:
        self._pool = Pool(device, "the weights")
        self._stream = Stream(device)
        self._orders: dict[bytes, int] = {}
        self._turns: dict[Rope, int] = {}
        self.matrices: dict[str, Matrix] = {}
        self.vectors: dict[str, int] = {}
        total, done = sum(plan.layout.nbytes for plan in plans), 0
        with device:
            for name, spec in program.weights.items():
                if spec.kind == "vector":
                    self.vectors[name] = self.put(weights.vector(name))
            for plan in plans:
                self.matrices[plan.names[0]] = self._upload(plan, weights)
                done += plan.layout.nbytes
                if progress is not None:
                    progress(done, total)
        if _HEAD in program.weights and _HEAD not in self.matrices:
            self.matrices[_HEAD] = self.matrices[_EMBEDDING]

    @property
    def nbytes(self) -> int:
        """Bytes of device memory held."""
        return self._pool.nbytes

    def describe_head(self) -> dict[str, str | int]:
        """What the lm_head is stored as, "int4", "int8" or "float16", and its bytes, which every token reads."""
        if _HEAD not in self.matrices:
            return {}
        layout = self.matrices[_HEAD].layout
        return {"lm_head": STORED_NAMES[layout.bits], "lm_head_bytes": layout.nbytes}

    def turns(self, rope: Rope) -> int:
        """Where a rotation's words lie (`kernels/turns.py`), u64 [rotary_dim / 2]."""
        if rope not in self._turns:
            self._turns[rope] = self.put(turn_words(rope.inv_freq()))
        return self._turns[rope]

    def put(self, array: np.ndarray) -> int:
        """Where a copy of `array` lies, for as long as the weights do."""
        array = np.ascontiguousarray(array)
        address = self._pool.allocate(array.nbytes)
        with self._pool.device:
            self._stream.upload(address, array)
            self._stream.wait()
        return address

    def close(self) -> None:
        """Free them."""
        self._pool.close()

    def _upload(self, plan: MatrixPlan, weights: Weights) -> Matrix:
        read = [_read(weights, name) for name in plan.names]
        first = read[0]
        order = first.permutation if isinstance(first, QuantizedTensor) else None
        packed = pack_linear(read, paired=plan.paired, layout=plan.layout if plan.dense else None)
        del read, first
        parts = [self.put(part) if part.size else 0 for part in (packed.tiles, packed.scales, packed.zeros)]
        bias = self._bias(plan, weights, packed)
        return Matrix(plan, packed.layout, *parts, bias, self._order(order), packed.zero, packed.factor)

    def _bias(self, plan: MatrixPlan, weights: Weights, packed: PackedLinear) -> int:
        if plan.names[0] == _EMBEDDING or (plan.names[0] == _HEAD and weights.lm_head_is_embedding):
            return 0
        biases = [weights.bias(name) for name in plan.names]
        if all(bias is None for bias in biases):
            return 0
        slots = np.zeros(16 * packed.layout.row_tiles, np.float32)
        row = 0
        for half, (name, bias) in enumerate(zip(plan.names, biases, strict=True)):
            rows = np.arange(weights.program.weights[name].shape[0])
            if bias is not None:
                slots[slot_of(rows, half) if plan.paired else row + rows] = bias
            row += len(rows)
        return self.put(slots)

    def _order(self, permutation: np.ndarray | None) -> int:
        """Where a permutation lies; equal ones are kept once."""
        if permutation is None:
            return 0
        key = permutation.tobytes()
        if key not in self._orders:
            self._orders[key] = self.put(permutation.astype(np.uint32))
        return self._orders[key]


def _read(weights: Weights, name: str) -> QuantizedTensor | np.ndarray:
    if name == _EMBEDDING or (name == _HEAD and weights.lm_head_is_embedding):
        return weights.embedding()
    return weights.linear(name)


def vectors_nbytes(program: Program) -> int:
    """Bytes that the norms' weights take on the device."""
    sizes = [4 * spec.shape[0] for spec in program.weights.values() if spec.kind == "vector"]
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes) + BLOCK


def loading_nbytes(plans: Sequence[MatrixPlan]) -> int:
    """The most that packing one matrix holds of this machine's memory."""
    return max(
        (_NUMBER_BYTES * 2 * plan.layout.row_tiles * 16 * plan.layout.padded_inputs for plan in plans), default=0
    )

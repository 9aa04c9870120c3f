"""Weights on the device: each is read, packed and uploaded before the next, so never two copies of a model are held."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgellm.backends.cuda.calls import KernelSet
from edgellm.backends.cuda.device_pack import DevicePacker, largest_of
from edgellm.backends.cuda.kernels.pack_kinds import PLAIN
from edgellm.backends.cuda.kernels.turns import turn_words
from edgellm.backends.cuda.layout import TILE_ROWS, LinearLayout
from edgellm.backends.cuda.matrices import STORED_NAMES, MatrixPlan
from edgellm.backends.cuda.memory import ALIGNMENT, BLOCK, Pool
from edgellm.backends.cuda.packing import (
    PackedLinear,
    dense_factor,
    pack_linear,
    pack_scales,
    pack_zeros,
    quantized_factor,
    scale_factor,
    slot_of,
)
from edgellm.backends.cuda.stream import Stream
from edgellm.backends.interface import Progress
from edgellm.formats import QuantizedTensor, StoredTensor
from edgellm.model.program import Program
from edgellm.model.rope import Rope
from edgellm.model.weights import Weights

_NUMBER_BYTES = 4
#: Bytes of a dense weight, as float32, that are read at a time.
_PIECE_BYTES = 64 << 20
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


def unpaired(matrix: Matrix) -> Matrix:
    """A paired matrix as a plain one, whose outputs are all slots."""
    slots = TILE_ROWS * matrix.layout.row_tiles
    return replace(matrix, layout=replace(matrix.layout, rows=slots, paired=False))


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
        kernels: KernelSet,
        program: Program,
        weights: Weights,
        plans: Sequence[MatrixPlan],
        progress: Progress | None = None,
    ) -> None:
        device = kernels.device
        self._pool = Pool(device, "the weights")
        self._stream = Stream(device)
        self._packer = DevicePacker(self._stream, kernels)
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
        self._packer.close()
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
        if not plan.dense:
            sources = [weights.stored(name) for name in plan.names]
            layout = _layout_of(plan, sources)
            if layout.bits < 16:
                return self._upload_codes(plan, layout, sources, weights)
            read = [weights.linear(name) for name in plan.names]
            return self._upload_packed(plan, pack_linear(read, paired=plan.paired), weights, read[0])
        if plan.layout.bits == 16:
            return self._upload_numbers(plan, weights)
        return self._upload_quantized(plan, weights)

    def _upload_codes(
        self,
        plan: MatrixPlan,
        layout: LinearLayout,
        sources: Sequence[StoredTensor | QuantizedTensor],
        weights: Weights,
    ) -> Matrix:
        """Codes go up as they are stored; scales and zero points, a hundredth of them, are packed here."""
        tiles = self._zeros(layout.tiles_bytes)
        slots = _slots_of(plan, [weight.shape[0] for weight in sources])
        for number, (weight, own) in enumerate(zip(sources, slots, strict=True)):
            self._packer.codes(weight, layout, tiles, int(own[0]), number if plan.paired else PLAIN)
        group_size = sources[0].group_size
        factor = scale_factor(layout, np.concatenate([weight.scales for weight in sources]))
        scales = pack_scales(
            layout, _in_slots(layout, slots, [weight.scales for weight in sources]), group_size, factor
        )
        zeros = [weight.zeros for weight in sources]
        packed_zeros = pack_zeros(layout, _in_slots(layout, slots, zeros), group_size)
        zero = 0 if layout.own_zeros else int(zeros[0].flat[0])
        parts = (self.put(scales), self.put(packed_zeros) if packed_zeros.size else 0)
        order = self._order(sources[0].permutation)
        return Matrix(plan, layout, tiles, *parts, self._bias(plan, weights, layout), order, zero, factor)

    def _upload_numbers(self, plan: MatrixPlan, weights: Weights) -> Matrix:
        """Floats go up as they are stored, a piece at a time; twice where their magnitudes are not the usual ones."""
        layout, tiles = plan.layout, self._zeros(plan.layout.tiles_bytes)
        factor, largest = 1.0, 0.0
        while True:
            for half, first, piece in _pieces(plan, weights):
                largest = max(largest, largest_of(piece))
                self._packer.numbers(piece, layout, tiles, factor, first, half)
            if factor == dense_factor(largest):
                break
            factor = dense_factor(largest)
        return Matrix(plan, layout, tiles, 0, 0, self._bias(plan, weights, layout), 0, 0, factor)

    def _upload_quantized(self, plan: MatrixPlan, weights: Weights) -> Matrix:
        """As `_upload_numbers`, the embedding or an unquantized lm_head, which is rounded to fewer bits on the way."""
        layout = plan.layout
        tiles, scales = self._zeros(layout.tiles_bytes), self._zeros(layout.scales_bytes)
        largest = 0.0
        factor = quantized_factor(layout, largest)
        while True:
            for _, first, piece in _pieces(plan, weights):
                largest = max(largest, largest_of(piece))
                self._packer.quantize(piece, layout, tiles, scales, factor, first)
            if factor == quantized_factor(layout, largest):
                break
            factor = quantized_factor(layout, largest)
        middle = 1 << layout.bits - 1
        return Matrix(plan, layout, tiles, scales, 0, self._bias(plan, weights, layout), 0, middle, factor)

    def _upload_packed(
        self, plan: MatrixPlan, packed: PackedLinear, weights: Weights, source: QuantizedTensor
    ) -> Matrix:
        """What was packed in this machine's memory, groups of odd sizes as floats."""
        parts = [self.put(part) if part.size else 0 for part in (packed.tiles, packed.scales, packed.zeros)]
        bias = self._bias(plan, weights, packed.layout)
        order = self._order(source.permutation)
        return Matrix(plan, packed.layout, *parts, bias, order, packed.zero, packed.factor)

    def _zeros(self, nbytes: int) -> int:
        address = self._pool.allocate(nbytes)
        self._stream.fill(address, nbytes)
        self._stream.wait()
        return address

    def _bias(self, plan: MatrixPlan, weights: Weights, layout: LinearLayout) -> int:
        if plan.names[0] == _EMBEDDING or (plan.names[0] == _HEAD and weights.lm_head_is_embedding):
            return 0
        biases = [weights.bias(name) for name in plan.names]
        if all(bias is None for bias in biases):
            return 0
        slots = _slots_of(plan, [weights.program.weights[name].shape[0] for name in plan.names])
        whole = np.zeros(TILE_ROWS * layout.row_tiles, np.float32)
        for own, bias in zip(slots, biases, strict=True):
            if bias is not None:
                whole[own] = bias
        return self.put(whole)

    def _order(self, permutation: np.ndarray | None) -> int:
        """Where a permutation lies; equal ones are kept once."""
        if permutation is None:
            return 0
        key = permutation.tobytes()
        if key not in self._orders:
            self._orders[key] = self.put(permutation.astype(np.uint32))
        return self._orders[key]


def _pieces(plan: MatrixPlan, weights: Weights) -> Iterator[tuple[int, int, np.ndarray]]:
    """(half, slot of the first row, rows as stored) of a dense matrix; each half of a paired one is one piece."""
    first_slot = 0
    for number, name in enumerate(plan.names):
        stored = _EMBEDDING if name == _HEAD and weights.lm_head_is_embedding else name
        rows, inputs = weights.program.weights[name].shape
        step = rows if plan.paired else max(1, _PIECE_BYTES // (_NUMBER_BYTES * inputs * TILE_ROWS)) * TILE_ROWS
        for first in range(0, rows, step):
            piece = weights.rows(stored, first, min(first + step, rows))
            yield (number, 0, piece) if plan.paired else (PLAIN, first_slot + first, piece)
        first_slot += rows


def _layout_of(plan: MatrixPlan, sources: Sequence[StoredTensor | QuantizedTensor]) -> LinearLayout:
    """The plan's layout, or the smaller one of a matrix whose zero points are all the same."""
    first = sources[0].zeros.flat[0]
    if plan.layout.bits == 16 or any((weight.zeros != first).any() for weight in sources):
        return plan.layout
    return replace(plan.layout, own_zeros=False)


def _slots_of(plan: MatrixPlan, rows: Sequence[int]) -> list[np.ndarray]:
    """The slots of each linear's rows."""
    if plan.paired:
        return [slot_of(np.arange(count), half) for half, count in enumerate(rows)]
    starts = np.cumsum([0, *rows])
    return [np.arange(first, last) for first, last in itertools.pairwise(starts.tolist())]


def _in_slots(layout: LinearLayout, slots: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> np.ndarray:
    whole = np.zeros((TILE_ROWS * layout.row_tiles, values[0].shape[1]), np.result_type(*values))
    for own, part in zip(slots, values, strict=True):
        whole[own] = part
    return whole


def vectors_nbytes(program: Program) -> int:
    """Bytes that the norms' weights take on the device."""
    sizes = [4 * spec.shape[0] for spec in program.weights.values() if spec.kind == "vector"]
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes) + BLOCK


def loading_nbytes(plans: Sequence[MatrixPlan]) -> int:
    """The most that a matrix on its way holds of this machine's memory: its words as stored, or a piece of floats."""
    whole = [plan.layout.row_tiles * TILE_ROWS * plan.layout.padded_inputs for plan in plans]
    dense = [_NUMBER_BYTES * count if plan.paired else _PIECE_BYTES for plan, count in zip(plans, whole, strict=True)]
    return max(
        (floats if plan.dense else count for plan, count, floats in zip(plans, whole, dense, strict=True)), default=0
    )

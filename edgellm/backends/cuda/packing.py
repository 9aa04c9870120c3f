"""Weights into the layout of `layout.py` and back, in NumPy: the definition that the kernels of `kernels/pack.py` meet.

The runtime packs codes on the device; scales and zero points, one or two hundredths of a weight's bytes, it packs here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgellm.backends.cuda.layout import TILE_INPUTS, TILE_ROWS, LinearLayout, plan_linear
from edgellm.errors import UsageError
from edgellm.formats import QuantizedTensor

#: Largest power of two that scaled numbers stay below: half of float16's range.
_HALF_TOP = 15
#: Turn of a word of 4-bit codes, see `layout.py`.
_TURN = 3


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """A packed weight in host memory.

    Attributes:
        tiles: uint32, `layout.tiles_shape`.
        scales: uint32 [row tiles, groups, 8], empty for 16 bits.
        zeros: uint16 (4 bits) or uint32 (8 bits) [row tiles, groups, 8], empty where the weight has one zero point.
        zero: that one.
        factor: of the whole weight.
    """

    layout: LinearLayout
    tiles: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    zero: int
    factor: float


def pack_linear(
    weights: Sequence[QuantizedTensor | np.ndarray], *, paired: bool = False, layout: LinearLayout | None = None
) -> PackedLinear:
    """Linears that read one input as one packed weight, their rows one behind the other, or paired.

    Args:
        weights: all quantized alike, or all float [rows, inputs]; columns stay in the order of codes, so activations
            must be read through a permutation.
        layout: of a dense weight that is to be quantized (8 or 4 bits); by default dense weights keep 16 bits.

    Raises:
        UsageError: the weights differ in shape, bits or groups.
    """
    rows, inputs = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    coded = [weight for weight in weights if isinstance(weight, QuantizedTensor)]
    if {weight.shape[1] for weight in weights} != {inputs} or len(coded) not in (0, len(weights)):
        raise UsageError("weights of one packed linear differ", key="weights", found=[w.shape for w in weights])
    if paired and (len(weights) != 2 or weights[0].shape != weights[1].shape):
        raise UsageError("a pair is two weights of one shape", key="weights", found=[w.shape for w in weights])
    if not coded:
        dense = _in_slots(np.concatenate([np.asarray(weight, np.float32) for weight in weights]), paired)
        layout = layout or plan_linear(rows, inputs, 16, paired=paired)
        return _pack_dense(dense, layout) if layout.bits == 16 else quantize(dense, layout)
    first = coded[0]
    if any((weight.bits, weight.group_size) != (first.bits, first.group_size) for weight in coded):
        raise UsageError("weights of one packed linear differ in bits or groups", key="weights", found=len(coded))
    zeros = np.concatenate([weight.zeros for weight in coded])
    own_zeros = bool((zeros != zeros.flat[0]).any())
    layout = plan_linear(rows, inputs, first.bits, first.group_size, own_zeros=own_zeros, paired=paired)
    if layout.bits == 16:
        return _pack_dense(_in_slots(np.concatenate([_stored_order(weight) for weight in coded]), paired), layout)
    scales = np.concatenate([weight.scales for weight in coded])
    factor = scale_factor(layout, scales)
    codes = _in_slots(np.concatenate([weight.codes for weight in coded]), paired)
    packed_scales = pack_scales(layout, _in_slots(scales, paired), first.group_size, factor)
    packed_zeros = pack_zeros(layout, _in_slots(zeros, paired), first.group_size)
    return PackedLinear(
        layout, pack_codes(layout, codes), packed_scales, packed_zeros, 0 if own_zeros else int(zeros.flat[0]), factor
    )


def scale_factor(layout: LinearLayout, scales: np.ndarray) -> float:
    """The factor of a quantized weight: 1 where its scales are float16 and weights so made fit float16, too.

    Args:
        scales: float16 or float32, all of the weight.
    """
    largest = float(np.abs(scales).max(initial=0.0))
    if scales.dtype == np.float16 and largest < 2.0 ** (_HALF_TOP - layout.bits):
        return 1.0
    return power_of_two(largest) * 2.0**layout.bits


def power_of_two(largest: float) -> float:
    """The power of two that divides `largest` into [2^14, 2^15), the most of float16's range; 1 for 0, NaN, inf."""
    if not math.isfinite(largest) or largest == 0.0:
        return 1.0
    return max(2.0 ** (math.frexp(largest)[1] - _HALF_TOP), 2.0**-126)


def pack_codes(layout: LinearLayout, codes: np.ndarray) -> np.ndarray:
    """Codes, uint8 [slots or fewer, inputs], rows in the order of slots (see `slot_of`), as tiles."""
    places = _fragments(layout, codes)  # (row tiles, input tiles, block, g, t, upper row, k / 8, k % 2)
    places = places.astype(np.uint32)
    if layout.bits == 8:
        shifts = np.array([[0, 16], [8, 24]], np.uint32)  # [k / 8][k % 2]
        words = (places << shifts).sum(axis=(-1, -2), dtype=np.uint32)  # (..., block, g, t, upper)
        words = words.reshape(*words.shape[:2], 2, 2, 8, 4, 2).transpose(0, 1, 2, 4, 5, 3, 6)
    else:
        shifts = np.array([[[0, 16], [8, 24]], [[4, 20], [12, 28]]], np.uint32)  # [upper][k / 8][k % 2]
        words = (places << shifts).sum(axis=(-1, -2, -3), dtype=np.uint32)  # (..., block, g, t)
        words = (words << np.uint32(_TURN) | words >> np.uint32(32 - _TURN)).transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(words).reshape(layout.tiles_shape)


def unpack_codes(layout: LinearLayout, tiles: np.ndarray) -> np.ndarray:
    """The codes of tiles, uint8 [row tiles * 16, padded inputs], rows in the order of slots."""
    head = layout.tiles_shape[:2]
    if layout.bits == 8:
        words = tiles.reshape(*head, 2, 8, 4, 2, 2)  # load, g, t, block of the load, upper
        words = words.transpose(0, 1, 2, 5, 3, 4, 6).reshape(*head, 4, 8, 4, 2)[..., None, None]
        places = words >> np.array([[0, 16], [8, 24]], np.uint32) & np.uint32(0xFF)
    else:
        words = tiles.reshape(*head, 8, 4, 4).transpose(0, 1, 4, 2, 3)[..., None, None, None]  # (.., block, g, t)
        words = words >> np.uint32(_TURN) | words << np.uint32(32 - _TURN)
        places = words >> np.array([[[0, 16], [8, 24]], [[4, 20], [12, 28]]], np.uint32) & np.uint32(0xF)
    return _rows_of(layout, places.astype(np.uint8))


def pack_numbers(layout: LinearLayout, numbers: np.ndarray) -> np.ndarray:
    """Numbers, float16 [slots or fewer, inputs], rows in the order of slots, as tiles of 16 bits."""
    places = _fragments(layout, numbers)  # (row tiles, input tiles, block, g, t, upper, k / 8, k % 2)
    places = places.transpose(0, 1, 2, 3, 4, 6, 5, 7)  # a0 a1 a2 a3: upper row first, then k
    return np.ascontiguousarray(places).view(np.uint32).reshape(layout.tiles_shape)


def unpack_numbers(layout: LinearLayout, tiles: np.ndarray) -> np.ndarray:
    """The float16 numbers of tiles of 16 bits, [row tiles * 16, padded inputs]."""
    places = tiles.view(np.float16).reshape(*layout.tiles_shape[:2], 4, 8, 4, 2, 2, 2)
    return _rows_of(layout, places.transpose(0, 1, 2, 3, 4, 6, 5, 7))


def pack_scales(layout: LinearLayout, scales: np.ndarray, group_size: int, factor: float) -> np.ndarray:
    """Scales [slots or fewer, groups of group_size] as uint32 [row tiles, groups in memory, 8]."""
    scaled = scales if factor == 1.0 else scales.astype(np.float32) / np.float32(factor)
    halves = _by_group(layout, scaled.astype(np.float16), group_size)
    return np.ascontiguousarray(halves).view(np.uint32)[..., 0]


def pack_zeros(layout: LinearLayout, zeros: np.ndarray, group_size: int) -> np.ndarray:
    """Zero points [slots or fewer, groups of group_size], as pairs; empty where the layout has none."""
    if not layout.own_zeros:
        return np.zeros(0, np.uint16 if layout.bits == 4 else np.uint32)
    pairs = _by_group(layout, zeros.astype(np.uint8 if layout.bits == 4 else np.uint16), group_size)
    return np.ascontiguousarray(pairs).view(np.uint16 if layout.bits == 4 else np.uint32)[..., 0]


def slot_of(row: int, half: int | None = None) -> int:
    """The row of the packed weight that holds an output: of gate (half 0) or up (half 1) in a paired one."""
    return row if half is None else row // 8 * TILE_ROWS + 8 * half + row % 8


def unpack_linear(packed: PackedLinear) -> np.ndarray:
    """The weight that the kernels see: float32 [rows, inputs]; of a paired one gate's rows, then up's."""
    layout = packed.layout
    if layout.bits == 16:
        weight = unpack_numbers(layout, packed.tiles).astype(np.float32)
    else:
        codes = unpack_codes(layout, packed.tiles).astype(np.float32)
        scales = _of_groups(layout, packed.scales, np.float16)
        if layout.own_zeros:
            zeros = _of_groups(layout, packed.zeros, np.uint8 if layout.bits == 4 else np.uint16)
        else:
            zeros = np.full_like(scales, packed.zero)
        weight = (codes - np.repeat(zeros, layout.group, 1)) * np.repeat(scales, layout.group, 1)
    weight = weight[:, : layout.inputs] * np.float32(packed.factor)
    if layout.paired:
        halves = weight.reshape(-1, 2, 8, layout.inputs).transpose(1, 0, 2, 3).reshape(2, -1, layout.inputs)
        return np.ascontiguousarray(halves[:, : layout.rows // 2]).reshape(layout.rows, layout.inputs)
    return weight[: layout.rows]


def _pack_dense(weight: np.ndarray, layout: LinearLayout) -> PackedLinear:
    factor = dense_factor(float(np.abs(weight).max(initial=0.0)))
    tiles = pack_numbers(layout, (weight / np.float32(factor)).astype(np.float16))
    nothing = np.zeros(0, np.uint32)
    return PackedLinear(layout, tiles, nothing, nothing, 0, factor)


def dense_factor(largest: float) -> float:
    """The factor of a dense weight: 1 for magnitudes as people publish them, from 2^-9 to 2^9."""
    return 1.0 if largest == 0.0 or 2.0**-9 <= largest <= 2.0**9 else power_of_two(largest)


def quantized_factor(layout: LinearLayout, largest: float) -> float:
    """The factor of a dense weight that is quantized at load: one for all magnitudes up to 2^9, however small.

    Scales are then float16 numbers of full precision for groups whose largest is 2^-20 or more.
    """
    if largest <= 2.0**9:
        return 2.0 ** -(layout.bits + 5)
    return power_of_two(largest) / (1 << layout.bits - 2)


def quantize(weight: np.ndarray, layout: LinearLayout) -> PackedLinear:
    """Round to nearest, symmetric around the middle code, a scale a group; rows in the order of slots."""
    padded = np.zeros((weight.shape[0], layout.padded_inputs), np.float32)
    padded[:, : weight.shape[1]] = weight
    grouped = padded.reshape(len(padded), layout.groups, layout.group)
    middle = 1 << layout.bits - 1
    largest = np.abs(grouped).max(-1)
    factor = quantized_factor(layout, float(largest.max(initial=0.0)))
    halves = (largest / np.float32(factor) * np.float32(1 / (middle - 1))).astype(np.float16)
    steps = halves.astype(np.float32) * np.float32(factor)
    inverse = np.divide(np.float32(1), steps, out=np.zeros_like(steps), where=steps > 0)
    codes = np.clip(np.rint(grouped * inverse[..., None]) + middle, 0, 2 * middle - 1).astype(np.uint8)
    codes = codes.reshape(padded.shape)[:, : weight.shape[1]]
    scales = pack_scales(layout, halves, layout.group, 1.0)
    return PackedLinear(layout, pack_codes(layout, codes), scales, pack_zeros(layout, halves, 1), middle, factor)


def _stored_order(weight: QuantizedTensor) -> np.ndarray:
    """The weight with its columns in the order of codes, which activations are read in."""
    dense = weight.dequantize()
    return dense if weight.permutation is None else dense[:, weight.permutation]


def _in_slots(rows: np.ndarray, paired: bool) -> np.ndarray:
    if not paired:
        return rows
    half = len(rows) // 2
    padded = np.zeros((2, -(-half // 8) * 8, rows.shape[1]), rows.dtype)
    padded[:, :half] = rows.reshape(2, half, -1)
    return padded.reshape(2, -1, 8, rows.shape[1]).transpose(1, 0, 2, 3).reshape(-1, rows.shape[1])


def _fragments(layout: LinearLayout, rows: np.ndarray) -> np.ndarray:
    """[slots, inputs] as (row tiles, input tiles, block, g, t, upper row, k / 8, k % 2)."""
    padded = np.zeros((layout.row_tiles * TILE_ROWS, layout.padded_inputs), rows.dtype)
    padded[: rows.shape[0], : rows.shape[1]] = rows
    split = padded.reshape(layout.row_tiles, 2, 8, layout.padded_inputs // TILE_INPUTS, 4, 2, 4, 2)
    return split.transpose(0, 3, 4, 2, 6, 1, 5, 7)


def _rows_of(layout: LinearLayout, places: np.ndarray) -> np.ndarray:
    rows = places.transpose(0, 5, 3, 1, 2, 6, 4, 7)
    return np.ascontiguousarray(rows).reshape(layout.row_tiles * TILE_ROWS, layout.padded_inputs)


def _by_group(layout: LinearLayout, values: np.ndarray, group_size: int) -> np.ndarray:
    """[slots, groups of group_size] as [row tiles, groups in memory, g, upper row]."""
    count = -(-layout.inputs // layout.group)
    source = np.minimum(np.arange(count) * layout.group // group_size, values.shape[1] - 1)
    padded = np.zeros((layout.row_tiles * TILE_ROWS, layout.groups), values.dtype)
    padded[: len(values), :count] = values[:, source]
    return padded.reshape(layout.row_tiles, 2, 8, layout.groups).transpose(0, 3, 2, 1)


def _of_groups(layout: LinearLayout, pairs: np.ndarray, dtype: type) -> np.ndarray:
    """The inverse of `_by_group`: float32 [row tiles * 16, groups in memory]."""
    values = np.ascontiguousarray(pairs).view(dtype).reshape(layout.row_tiles, layout.groups, 8, 2)
    return values.transpose(0, 3, 2, 1).reshape(layout.row_tiles * TILE_ROWS, layout.groups).astype(np.float32)

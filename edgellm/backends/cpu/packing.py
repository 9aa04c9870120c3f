"""Weights into the layout that the kernels read (`layout.py`), and back.

Packing goes through a weight in pieces that stay in the processor's cache, so it needs no memory to speak of besides
what is stored in the file and its place, and several threads can pack side by side: kernels let them run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from edgellm.backends.cpu.layout import BAND, HEAD_BYTES, LinearKind, LinearLayout, Part, memory_group, round_up
from edgellm.backends.cpu.native import Native
from edgellm.backends.cpu.scratch import REGROUP_STAGE, scratch_floats
from edgellm.errors import UsageError
from edgellm.formats import CodePlaces, QuantizedTensor, StoredTensor

pack_codes = Native("edgellm.backends.cpu.code_pack", "pack_codes")
regroup = Native("edgellm.backends.cpu.code_pack", "regroup")
pack_dense = Native("edgellm.backends.cpu.linear_pack", "pack_dense")

#: What numbers are stored as, by their safetensors names.
STORED_CODES = {"F32": 0, "F16": 1, "BF16": 2}
#: Codes handled at a time: they and their packed form fit a core's second-level cache.
_PIECE_BYTES = 256 << 10
_HALF_TOP = 15  # scaled numbers stay below 2**15, half of float16's range
#: Groups of an INT8 weight quantized here. On Gaussian rows 64 has 0.8 times the squared error of 128 for 1.5 % more
#: bytes, where the error of either is below 1e-4 of the weight: bytes are what a decode step costs.
_INT8_GROUPS = (128, 64, 32, 16)
#: Group of an INT4 weight quantized here.
_INT4_GROUP = 32
#: Zero points of weights quantized here.
_MIDDLES = {LinearKind.INT8: 128, LinearKind.INT4: 8}
#: Those of slices, q = 64 (a - 1.625) + 16 (b - 1.5) + (c - 8), q = 4 (a - 1.625) + (b - 1.5): each is in the middle of
#: what it may be.
_SLICE_MIDDLES = (1.625, 1.5, 8)
#: What the slices behind the first are, by the bits of all.
_RESTS = {8: (LinearKind.INT2, LinearKind.INT4), 4: (LinearKind.INT2,)}
#: How much smaller than the largest weight the largest scale is, roughly: a power of two that keeps it below 2**16.
_SCALES_PER_WEIGHT = {LinearKind.F16: 1, LinearKind.INT8: 128, LinearKind.INT4: 8, LinearKind.INT2: 2}
#: Largest magnitude of dense weights as they are published; its inverse is the least.
_USUAL_LARGEST = 255.0


def plan_linear(
    rows: int, inputs: int, bits: int, group_size: int | None = None, own_zeros: bool = True, sliced: bool = False
) -> LinearLayout:
    """The layout of a weight of that shape.

    Args:
        bits: 2 to 8 for codes; 16 for dense numbers.
        group_size: of the codes; None for a dense weight, which is quantized where `bits` is 8 or 4.
        own_zeros: whether zero points differ; False where they are all the same.
        sliced: whether a dense weight of 8 or 4 bits is stored in slices.

    Raises:
        UsageError: dense with other than 4, 8 or 16 bits.
    """
    if group_size is None:
        if bits not in (4, 8, 16):
            raise UsageError("no such storage of a dense weight", key="bits", found=bits, allowed="4, 8, 16")
        if bits == 16:
            return LinearLayout(LinearKind.F16, rows, inputs, 1)
        group = _INT4_GROUP if bits == 4 else min(_INT8_GROUPS, key=lambda group: (round_up(inputs, group), -group))
        if sliced:
            return LinearLayout(LinearKind.INT2, rows, inputs, group, rest=_RESTS[bits])
        return LinearLayout(LinearKind.INT4 if bits == 4 else LinearKind.INT8, rows, inputs, group)
    group = memory_group(group_size, inputs)
    if group is None:
        return LinearLayout(LinearKind.F16, rows, inputs, 1)
    return LinearLayout(LinearKind.INT4 if bits <= 4 else LinearKind.INT8, rows, inputs, group, own_zeros)


def layout_of(weight: StoredTensor | QuantizedTensor | np.ndarray, dense_bits: int = 16) -> LinearLayout:
    """The layout of a weight at hand; a dense one is stored with `dense_bits`, 4, 8 or 16."""
    if not isinstance(weight, np.ndarray):
        own_zeros = bool((weight.zeros != weight.zeros.flat[0]).any())
        return plan_linear(*weight.shape, weight.bits, weight.group_size, own_zeros)
    return plan_linear(*weight.shape, dense_bits)


def pack_linear(weight: StoredTensor | QuantizedTensor | np.ndarray, out: np.ndarray, layout: LinearLayout) -> float:
    """Write a weight in `layout`, which `layout_of` or `plan_linear` gave for it.

    Args:
        weight: quantized, or float [rows, inputs]. Codes stay in the order of their columns, so activations must be
            read through its permutation; where codes become F16 they are dequantized, in the order of the inputs.
        out: uint8 [layout.nbytes], zeroed: padding is not written.

    Returns:
        The factor of the whole weight, a power of two.

    Raises:
        UsageError: weight, place and layout do not fit each other.
        ModelError, OutOfMemoryError: the words of a stored weight cannot be read.
    """
    if weight.shape != (layout.rows, layout.inputs) or out.shape != (layout.nbytes,) or out.dtype != np.uint8:
        raise UsageError("does not fit the layout", key="weight", found=f"{weight.shape} into {out.shape} {out.dtype}")
    if isinstance(weight, np.ndarray):
        return _pack_dense(weight, out, layout)
    if isinstance(weight, StoredTensor) and not _packs_from_words(weight, layout):
        weight = weight.load()
    if layout.kind == LinearKind.F16:
        return _pack_dense(weight.dequantize(), out, layout)
    return _pack_quantized(weight, out, layout)


def _pack_quantized(weight: StoredTensor | QuantizedTensor, out: np.ndarray, layout: LinearLayout) -> float:
    factor = 1.0 if weight.scales.dtype == np.float16 else power_of_two(_largest(weight.scales))
    source = np.minimum(np.arange(layout.groups) * layout.group // weight.group_size, weight.scales.shape[1] - 1)
    if not layout.own_zeros:
        write_head(out, layout, int(weight.zeros.flat[0]))
    for part in layout.parts():
        places = PartView(out, layout, part)
        groups = source[part.first_group : part.last_group]
        columns = slice(part.first_group * layout.group, part.last_group * layout.group)
        for first, last in _pieces(layout, part):
            scales = weight.scales[first:last, groups]
            if factor != 1.0:
                scales = scales / np.float32(factor)
            block = first // layout.lanes - part.first_block
            _transpose_into(places.scales, block, scales.astype(np.float16))
            if places.zeros is not None:
                _transpose_into(places.zeros, block, weight.zeros[first:last, groups].astype(places.zeros.dtype))
            if isinstance(weight, QuantizedTensor):
                _transpose_into(places.lines, block, _quads(weight.codes[first:last, columns], layout, part))
    if isinstance(weight, StoredTensor):
        _write_stored(out, layout, weight)
    return factor


def _packs_from_words(weight: StoredTensor, layout: LinearLayout) -> bool:
    interleaved = weight.places.interleaved
    return layout.kind != LinearKind.F16 and not (interleaved and (layout.inputs % 8 or weight.bits != 4))


def _write_stored(out: np.ndarray, layout: LinearLayout, weight: StoredTensor) -> None:
    places, words = weight.ordered_places(), weight.read_words().reshape(-1)
    if places.interleaved:
        width = int(places.input_word[1])
        regroup(words.view(np.float32), np.zeros(REGROUP_STAGE, np.float32), layout.inputs, width)
        regrouped = CodePlaces.along_columns(width, layout.inputs, 4)
        row_word = places.row_word + places.row_shift // 4 * width
        places = replace(regrouped, input_word=8 * regrouped.input_word, row_word=row_word)
    stage = np.zeros(layout.lanes, np.int32)
    for part in layout.parts():
        lines = part.offset + layout.lines_offset(part.groups)
        sizes = np.array([layout.bits, weight.bits, part.groups * layout.group, lines, layout.piece_bytes(part.groups)])
        inputs = slice(part.first_group * layout.group, part.last_group * layout.group)
        rows = slice(part.first_block * layout.lanes, part.last_block * layout.lanes)
        tables = (places.input_word[inputs], places.input_shift[inputs], places.row_word[rows])
        pack_codes(out, words, *tables, sizes, stage)


def _pack_dense(weight: np.ndarray, out: np.ndarray, layout: LinearLayout) -> float:
    weight, factor = np.ascontiguousarray(weight, np.float32), dense_factor(layout)
    write_head(out, layout)
    largest = pack_rows(weight, "F32", out, layout, factor)
    if factor_fits(largest):
        return factor
    factor = dense_factor(layout, largest)
    pack_rows(weight, "F32", out, layout, factor)
    return factor


def pack_rows(
    stored: np.ndarray, dtype: str, out: np.ndarray, layout: LinearLayout, factor: float, first_row: int = 0
) -> float:
    """Rows of a dense weight into their blocks.

    Args:
        stored: [n, layout.inputs] as stored: float32, float16, or uint16 for bfloat16; C-contiguous.
        dtype: the safetensors name of what they are stored as.
        out: uint8, the whole weight; rows that fill up the last block are zeros.
        factor: of the whole weight.
        first_row: the first of these rows; a band of the layout begins with it, and one ends with the last.

    Returns:
        The largest magnitude among them, for `factor_fits`.
    """
    rows, inputs = stored.shape
    stride = max(inputs, layout.lanes)  # the kernel reads whole vectors
    if stride > inputs:
        stored = np.pad(stored, ((0, 0), (0, stride - inputs)))
    scratch = np.zeros(scratch_floats(max(layout.stretch * layout.group, stride)), np.float32)
    numbers, largest = stored.reshape(-1).view(np.uint8), 0.0
    height = BAND * layout.lanes
    bands = (first_row // height, -(-(first_row + rows) // height))
    slices = layout.slices
    for parts in zip(*(piece.parts(*bands) for _, piece in slices), strict=True):
        part = parts[0]
        first, last = part.first_group * layout.group, part.last_group * layout.group
        sizes = (layout.kind, last - first, layout.group, layout.lines_offset(part.groups))
        begin = part.first_block * layout.lanes - first_row
        end = min(part.last_block * layout.lanes - first_row, rows)
        # a row that is one stretch goes to its end, which is behind its inputs where it was filled up
        read = (stride, first, last if last < inputs else stride, begin, end)
        places = [(at + p.offset, piece.piece_bytes(p.groups)) for (at, piece), p in zip(slices, parts, strict=True)]
        values = np.array((*sizes, *read, *itertools.chain(*places)), np.int64)
        found = pack_dense(out, numbers, STORED_CODES[dtype], scratch, values, np.float32(factor))
        largest = max(largest, found)
    return largest


def dense_factor(layout: LinearLayout, largest: float = _USUAL_LARGEST) -> float:
    """The factor of a dense weight whose largest magnitude is that.

    Weights as people publish them lie in one wide range, so they are packed in one pass with its factor: scales (F16:
    the weights) are then normal numbers of float16 from 2**-21 on, and magnitudes below 2**8 fit. Where the largest one
    turns out to lie elsewhere (`factor_fits`), the weight is packed again with the factor made for it.
    """
    return power_of_two(largest) / _SCALES_PER_WEIGHT[layout.kind]


def factor_fits(largest: float) -> bool:
    """Whether the usual `dense_factor` serves a weight with that largest magnitude."""
    return largest == 0.0 or 1 / _USUAL_LARGEST <= largest <= _USUAL_LARGEST


def power_of_two(largest: float) -> float:
    """The power of two that divides `largest` into float16's range with the most room below: 1.0 for 0, NaN, inf."""
    if not math.isfinite(largest) or largest == 0.0:
        return 1.0
    return max(2.0 ** (math.frexp(largest)[1] - _HALF_TOP), 2.0**-126)


def _largest(values: np.ndarray) -> float:
    return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))


def _pieces(layout: LinearLayout, part: Part) -> Iterator[tuple[int, int]]:
    """Ranges of a part's rows, whole blocks each but the last."""
    step = layout.lanes * max(1, _PIECE_BYTES // (layout.lanes * part.groups * layout.group))
    end = min(part.last_block * layout.lanes, layout.rows)
    for first in range(part.first_block * layout.lanes, end, step):
        yield first, min(first + step, end)


def write_head(out: np.ndarray, layout: LinearLayout, zero: int | None = None) -> None:
    """The line of zero points before the blocks, where the layout has one; None for a weight quantized here."""
    if layout.kind == LinearKind.F16:
        return
    middles = _SLICE_MIDDLES if layout.rest else (_MIDDLES[layout.kind] if zero is None else zero,)
    for (offset, piece), middle in zip(layout.slices, middles, strict=False):
        dtype = np.uint8 if piece.kind == LinearKind.INT4 else np.float16
        out[offset : offset + HEAD_BYTES].view(dtype)[: layout.lanes] = middle


class PartView:
    """What lies where in a part of a packed weight.

    Attributes:
        scales: float16 [blocks, groups, lanes], absent for F16.
        zeros: own zero points likewise, uint8 (INT4) or float16 (INT8), or None.
        lines: uint32 [blocks, words of a row, lanes] of codes, float16 [blocks, inputs, lanes] for F16.
    """

    def __init__(self, packed: np.ndarray, layout: LinearLayout, part: Part) -> None:
        groups = part.groups
        piece_bytes = layout.piece_bytes(groups)
        pieces = packed[part.offset : part.offset + part.blocks * piece_bytes].reshape(part.blocks, piece_bytes)

        def view(first: int, nbytes: int, dtype: type) -> np.ndarray:
            return pieces[:, first : first + nbytes].view(dtype).reshape(part.blocks, -1, layout.lanes)

        coded = layout.kind != LinearKind.F16
        self.lines = view(layout.lines_offset(groups), layout.lines_bytes(groups), np.uint32 if coded else np.float16)
        if coded:
            self.scales = view(0, layout.scales_bytes(groups), np.float16)
            dtype = np.uint8 if layout.kind == LinearKind.INT4 else np.float16
            own = layout.own_zeros
            self.zeros = view(layout.scales_bytes(groups), layout.zeros_bytes(groups), dtype) if own else None


def _quads(codes: np.ndarray, layout: LinearLayout, part: Part) -> np.ndarray:
    """Rows of codes as the words of lines, uint32 [rows, words]."""
    width = part.groups * layout.group
    if codes.shape[1] != width or not codes.flags.c_contiguous:
        padded = np.zeros((len(codes), width), np.uint8)
        padded[:, : codes.shape[1]] = codes
        codes = padded
    quads = codes.view(np.uint32)
    return quads if layout.kind == LinearKind.INT8 else quads[:, 0::2] | quads[:, 1::2] << 4


def _transpose_into(places: np.ndarray, block: int, rows: np.ndarray) -> None:
    """`rows` [n, columns] from `block` on into places [blocks, columns, lanes]."""
    lanes = places.shape[2]
    whole = len(rows) // lanes
    blocked = rows[: whole * lanes].reshape(whole, lanes, rows.shape[1])
    places[block : block + whole] = blocked.transpose(0, 2, 1)
    rest = rows[whole * lanes :]
    if len(rest):
        places[block + whole, :, : len(rest)] = rest.T


def unpack_linear(packed: np.ndarray, layout: LinearLayout, factor: float) -> np.ndarray:
    """The weight that kernels see: float32 [rows, inputs], columns in the stored order."""
    if layout.kind == LinearKind.F16:
        (part,) = layout.parts()
        weight = _untransposed(PartView(packed, layout, part).lines).astype(np.float32)
        return weight[: layout.rows, : layout.inputs] * np.float32(factor)
    if layout.rest:
        return sum(unpack_linear(packed[offset:][: piece.nbytes], piece, factor) for offset, piece in layout.slices)
    codes, zeros, scales = unpack_codes(packed, layout)
    grouped = codes.reshape(layout.rows, layout.groups, layout.group) - zeros[..., None]
    weight = (grouped * scales[..., None]).reshape(layout.rows, -1)
    return weight[:, : layout.inputs] * np.float32(factor)


def unpack_codes(packed: np.ndarray, layout: LinearLayout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [rows, padded_inputs], zero points and scales [rows, groups], float32 each, without the factor."""
    whole = layout.blocks * layout.lanes
    codes = np.empty((whole, layout.padded_inputs), np.float32)
    scales = np.empty((whole, layout.groups), np.float32)
    dtype = np.uint8 if layout.kind == LinearKind.INT4 else np.float16
    zeros = np.full_like(scales, packed[:HEAD_BYTES].view(dtype)[0])
    for part in layout.parts():
        places = PartView(packed, layout, part)
        rows = slice(part.first_block * layout.lanes, part.last_block * layout.lanes)
        groups = slice(part.first_group, part.last_group)
        quads = _untransposed(places.lines)
        if layout.bits < 8:
            mask = np.uint32(0x01010101 * ((1 << layout.bits) - 1))
            cut = [quads >> shift & mask for shift in range(0, 8, layout.bits)]
            quads = np.stack(cut, axis=2).reshape(len(quads), -1)
        columns = slice(part.first_group * layout.group, part.last_group * layout.group)
        codes[rows, columns] = np.ascontiguousarray(quads).view(np.uint8)
        scales[rows, groups] = _untransposed(places.scales)
        if places.zeros is not None:
            zeros[rows, groups] = _untransposed(places.zeros)
    return codes[: layout.rows], zeros[: layout.rows], scales[: layout.rows]


def _untransposed(places: np.ndarray) -> np.ndarray:
    """[blocks, columns, lanes] back to [rows, columns]."""
    return places.transpose(0, 2, 1).reshape(places.shape[0] * places.shape[2], -1)

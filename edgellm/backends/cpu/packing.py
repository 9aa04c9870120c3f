"""Weights into the layout that the kernels read (`layout.py`), and back.

Packing goes through a weight in pieces that stay in the processor's cache, so it needs no memory to speak of besides
the weight itself and its place, and weights can be packed side by side by several threads: NumPy lets them run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from edgellm.backends.cpu.layout import HEAD_BYTES, LinearKind, LinearLayout, Part, memory_group, round_up
from edgellm.backends.cpu.linear_pack import PACK_STAGE, pack_float16, pack_rounded
from edgellm.backends.cpu.work import share
from edgellm.errors import UsageError
from edgellm.formats import QuantizedTensor

#: Codes handled at a time: they and their packed form fit a core's second-level cache.
_PIECE_BYTES = 256 << 10
_HALF_TOP = 15  # scaled numbers stay below 2**15, half of float16's range
#: Groups of an INT8 weight quantized here. On Gaussian rows 64 has 0.8 times the squared error of 128 for 1.5 % more
#: bytes, where the error of either is below 1e-4 of the weight: bytes are what a decode step costs.
_INT8_GROUPS = (128, 64, 32, 16)
_MIDDLE = 128


def plan_linear(
    rows: int, inputs: int, bits: int, group_size: int | None = None, own_zeros: bool = True
) -> LinearLayout:
    """The layout of a weight of that shape.

    Args:
        bits: 2 to 8 for codes; 16 for dense numbers.
        group_size: of the codes; None for a dense weight, which is quantized to 8 bits where `bits` is 8.
        own_zeros: whether zero points differ; False where they are all the same.

    Raises:
        UsageError: dense with other than 8 or 16 bits.
    """
    if group_size is None:
        if bits not in (8, 16):
            raise UsageError("no such storage of a dense weight", key="bits", found=bits, allowed="8, 16")
        if bits == 16:
            return LinearLayout(LinearKind.F16, rows, inputs, 1)
        group = min(_INT8_GROUPS, key=lambda group: (round_up(inputs, group), -group))
        return LinearLayout(LinearKind.INT8, rows, inputs, group)
    group = memory_group(group_size, inputs)
    if group is None:
        return LinearLayout(LinearKind.F16, rows, inputs, 1)
    return LinearLayout(LinearKind.INT4 if bits <= 4 else LinearKind.INT8, rows, inputs, group, own_zeros)


def layout_of(weight: QuantizedTensor | np.ndarray, dense_bits: int = 16) -> LinearLayout:
    """The layout of a weight at hand; a dense one is stored with `dense_bits`, 8 or 16."""
    if isinstance(weight, QuantizedTensor):
        own_zeros = bool((weight.zeros != weight.zeros.flat[0]).any())
        return plan_linear(*weight.shape, weight.bits, weight.group_size, own_zeros)
    return plan_linear(*weight.shape, dense_bits)


def pack_linear(weight: QuantizedTensor | np.ndarray, out: np.ndarray, layout: LinearLayout, threads: int = 1) -> float:
    """Write a weight in `layout`, which `layout_of` or `plan_linear` gave for it.

    Args:
        weight: quantized, or float [rows, inputs]. Codes stay in the order of their columns, so activations must be
            read through its permutation; where codes become F16 they are dequantized, in the order of the inputs.
        out: uint8 [layout.nbytes], zeroed: padding is not written.
        threads: how many share the work.

    Returns:
        The factor of the whole weight, a power of two.

    Raises:
        UsageError: weight, place and layout do not fit each other.
    """
    if weight.shape != (layout.rows, layout.inputs) or out.shape != (layout.nbytes,) or out.dtype != np.uint8:
        raise UsageError("does not fit the layout", key="weight", found=f"{weight.shape} into {out.shape} {out.dtype}")
    if layout.kind == LinearKind.F16:
        return _pack_dense(weight, out, layout, threads)
    if isinstance(weight, QuantizedTensor):
        return _pack_codes(weight, out, layout, threads)
    return _pack_rounded(weight, out, layout, threads)


def _pack_codes(weight: QuantizedTensor, out: np.ndarray, layout: LinearLayout, threads: int) -> float:
    factor = 1.0 if weight.scales.dtype == np.float16 else power_of_two(weight.scales)
    source = np.minimum(np.arange(layout.groups) * layout.group // weight.group_size, weight.scales.shape[1] - 1)
    if not layout.own_zeros:
        _write_head(out, layout, int(weight.zeros.flat[0]))

    def pack(first_band: int, last_band: int) -> None:
        for part in layout.parts(first_band, last_band):
            places = PartView(out, layout, part)
            groups = source[part.first_group : part.last_group]
            for first, last in _pieces(layout, part):
                scales = weight.scales[first:last, groups]
                if factor != 1.0:
                    scales = scales / np.float32(factor)
                block = first // layout.lanes - part.first_block
                _transpose_into(places.scales, block, scales.astype(np.float16))
                if places.zeros is not None:
                    _transpose_into(places.zeros, block, weight.zeros[first:last, groups].astype(places.zeros.dtype))
                columns = slice(part.first_group * layout.group, part.last_group * layout.group)
                _transpose_into(places.lines, block, _quads(weight.codes[first:last, columns], layout, part))

    _side_by_side(pack, layout.bands, threads)
    return factor


def _pack_rounded(weight: np.ndarray, out: np.ndarray, layout: LinearLayout, threads: int) -> float:
    factor = power_of_two(weight) / 128.0  # so that the largest scale stays in float16's range, and small ones normal
    _write_head(out, layout, _MIDDLE)
    flat = np.ascontiguousarray(weight, np.float32).reshape(-1)

    def pack(first_band: int, last_band: int) -> None:
        stage = np.zeros(PACK_STAGE, np.float32)
        for part in layout.parts(first_band, last_band):
            inputs = (part.first_group * layout.group, min(part.last_group * layout.group, layout.inputs))
            sizes = (layout.group, layout.lines_offset(part.groups), layout.piece_bytes(part.groups))
            shape, blocks = (layout.rows, layout.inputs), (part.first_block, part.last_block)
            pack_rounded(out, flat, stage, *shape, *inputs, *sizes, part.offset, np.float32(factor), *blocks)

    _side_by_side(pack, layout.bands, threads)
    return factor


def _pack_dense(weight: QuantizedTensor | np.ndarray, out: np.ndarray, layout: LinearLayout, threads: int) -> float:
    if isinstance(weight, QuantizedTensor):
        weight = weight.dequantize()
    factor = power_of_two(weight)
    flat = np.ascontiguousarray(weight, np.float32).reshape(-1)
    sizes = (layout.rows, layout.inputs, layout.lines_offset(layout.groups), layout.block_bytes)

    def pack(first: int, last: int) -> None:
        pack_float16(out, flat, np.zeros(PACK_STAGE, np.float32), *sizes, np.float32(1 / factor), first, last)

    _side_by_side(pack, layout.blocks, threads)
    return factor


def _side_by_side(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """work(first, last) over `count` pieces, by `threads` threads."""
    if threads == 1:
        work(0, count)
        return
    bounds = [share(ith, threads, count) for ith in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, first, last) for first, last in bounds]:
            done.result()


def power_of_two(values: np.ndarray) -> float:
    """The power of two that divides `values` into float16's range with the most room below: 1.0 for zeros, NaN, inf."""
    largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
    if not math.isfinite(largest) or largest == 0.0:
        return 1.0
    return max(2.0 ** (math.frexp(largest)[1] - _HALF_TOP), 2.0**-126)


def _pieces(layout: LinearLayout, part: Part) -> Iterator[tuple[int, int]]:
    """Ranges of a part's rows, whole blocks each but the last."""
    step = layout.lanes * max(1, _PIECE_BYTES // (layout.lanes * part.groups * layout.group))
    end = min(part.last_block * layout.lanes, layout.rows)
    for first in range(part.first_block * layout.lanes, end, step):
        yield first, min(first + step, end)


def _write_head(out: np.ndarray, layout: LinearLayout, zero: int) -> None:
    dtype = np.uint8 if layout.kind == LinearKind.INT4 else np.float16
    out[:HEAD_BYTES].view(dtype)[: layout.lanes] = zero


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
        if layout.kind == LinearKind.INT4:
            quads = np.stack([quads & 0x0F0F0F0F, quads >> 4 & 0x0F0F0F0F], axis=2).reshape(len(quads), -1)
        columns = slice(part.first_group * layout.group, part.last_group * layout.group)
        codes[rows, columns] = np.ascontiguousarray(quads).view(np.uint8)
        scales[rows, groups] = _untransposed(places.scales)
        if places.zeros is not None:
            zeros[rows, groups] = _untransposed(places.zeros)
    return codes[: layout.rows], zeros[: layout.rows], scales[: layout.rows]


def _untransposed(places: np.ndarray) -> np.ndarray:
    """[blocks, columns, lanes] back to [rows, columns]."""
    return places.transpose(0, 2, 1).reshape(places.shape[0] * places.shape[2], -1)

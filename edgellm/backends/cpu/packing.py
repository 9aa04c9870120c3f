"""Weights into the layout that the kernels read (`layout.py`), and back.

Packing goes through a weight in pieces that stay in the processor's cache, so it needs no memory to speak of besides
the weight itself and its place, and weights can be packed side by side by several threads: NumPy lets them run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from edgellm.backends.cpu.layout import HEAD_BYTES, LinearKind, LinearLayout, memory_group, round_up
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

    def pack(first_block: int, last_block: int) -> None:
        for first, last in _pieces(layout, first_block, last_block):
            scales = weight.scales[first:last, source]
            if factor != 1.0:
                scales = scales / np.float32(factor)
            zeros = weight.zeros[first:last, source] if layout.own_zeros else None
            _write_groups(out, layout, first, scales.astype(np.float16), zeros)
            _write_codes(out, layout, first, weight.codes[first:last])

    _side_by_side(pack, layout.blocks, threads)
    return factor


def _pack_rounded(weight: np.ndarray, out: np.ndarray, layout: LinearLayout, threads: int) -> float:
    factor = power_of_two(weight) / 128.0  # so that the largest scale stays in float16's range, and small ones normal
    _write_head(out, layout, _MIDDLE)
    sizes = (layout.rows, layout.inputs, layout.group, layout.head_bytes, layout.lines_offset, layout.block_bytes)
    flat = np.ascontiguousarray(weight, np.float32).reshape(-1)

    def pack(first: int, last: int) -> None:
        pack_rounded(out, flat, np.zeros(PACK_STAGE, np.float32), *sizes, np.float32(factor), first, last)

    _side_by_side(pack, layout.blocks, threads)
    return factor


def _pack_dense(weight: QuantizedTensor | np.ndarray, out: np.ndarray, layout: LinearLayout, threads: int) -> float:
    if isinstance(weight, QuantizedTensor):
        weight = weight.dequantize()
    factor = power_of_two(weight)
    flat = np.ascontiguousarray(weight, np.float32).reshape(-1)
    sizes = (layout.rows, layout.inputs, layout.lines_offset, layout.block_bytes)

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


def _pieces(layout: LinearLayout, first_block: int, last_block: int) -> Iterator[tuple[int, int]]:
    """Ranges of the blocks' rows, whole blocks each but the last."""
    step = layout.lanes * max(1, _PIECE_BYTES // (layout.lanes * layout.padded_inputs))
    end = min(last_block * layout.lanes, layout.rows)
    for first in range(first_block * layout.lanes, end, step):
        yield first, min(first + step, end)


def _write_head(out: np.ndarray, layout: LinearLayout, zero: int) -> None:
    dtype = np.uint8 if layout.kind == LinearKind.INT4 else np.float16
    out[:HEAD_BYTES].view(dtype)[: layout.lanes] = zero


def blocks_view(packed: np.ndarray, layout: LinearLayout) -> np.ndarray:
    """The blocks, uint8 [blocks, block_bytes]."""
    return packed[layout.head_bytes :].reshape(layout.blocks, layout.block_bytes)


def line_view(packed: np.ndarray, layout: LinearLayout, dtype: type) -> np.ndarray:
    """The lines of every block as [blocks, lines, lanes] of `dtype`."""
    first = layout.lines_offset
    return _columns(packed, layout, first, layout.lines_bytes, dtype)


def group_views(packed: np.ndarray, layout: LinearLayout) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales float16 and own zero points (uint8, float16 or None), [blocks, groups, lanes] each."""
    scales = _columns(packed, layout, 0, layout.scales_bytes, np.float16)
    if not layout.own_zeros:
        return scales, None
    dtype = np.uint8 if layout.kind == LinearKind.INT4 else np.float16
    return scales, _columns(packed, layout, layout.scales_bytes, layout.zeros_bytes, dtype)


def _columns(packed: np.ndarray, layout: LinearLayout, first: int, nbytes: int, dtype: type) -> np.ndarray:
    part = blocks_view(packed, layout)[:, first : first + nbytes].view(dtype)
    return part.reshape(layout.blocks, -1, layout.lanes)


def _write_groups(
    out: np.ndarray, layout: LinearLayout, first: int, scales: np.ndarray, zeros: np.ndarray | None
) -> None:
    places = group_views(out, layout)
    _transpose_into(places[0], layout, first, scales)
    if zeros is not None:
        _transpose_into(places[1], layout, first, zeros.astype(places[1].dtype))


def _write_codes(out: np.ndarray, layout: LinearLayout, first: int, codes: np.ndarray) -> None:
    if codes.shape[1] != layout.padded_inputs or not codes.flags.c_contiguous:
        padded = np.zeros((len(codes), layout.padded_inputs), np.uint8)
        padded[:, : codes.shape[1]] = codes
        codes = padded
    quads = codes.view(np.uint32)
    if layout.kind == LinearKind.INT4:
        quads = quads[:, 0::2] | quads[:, 1::2] << 4
    _transpose_into(line_view(out, layout, np.uint32), layout, first, quads)


def _transpose_into(places: np.ndarray, layout: LinearLayout, first: int, rows: np.ndarray) -> None:
    """`rows` [n, columns] from row `first` on into places [blocks, columns, lanes]."""
    block, whole = first // layout.lanes, len(rows) // layout.lanes
    blocked = rows[: whole * layout.lanes].reshape(whole, layout.lanes, rows.shape[1])
    places[block : block + whole] = blocked.transpose(0, 2, 1)
    rest = rows[whole * layout.lanes :]
    if len(rest):
        places[block + whole, :, : len(rest)] = rest.T


def unpack_linear(packed: np.ndarray, layout: LinearLayout, factor: float) -> np.ndarray:
    """The weight that kernels see: float32 [rows, inputs], columns in the stored order."""
    if layout.kind == LinearKind.F16:
        weight = _untransposed(line_view(packed, layout, np.float16), layout).astype(np.float32)
        return weight[:, : layout.inputs] * np.float32(factor)
    codes, zeros, scales = unpack_codes(packed, layout)
    grouped = codes.reshape(layout.rows, layout.groups, layout.group) - zeros[..., None]
    weight = (grouped * scales[..., None]).reshape(layout.rows, -1)
    return weight[:, : layout.inputs] * np.float32(factor)


def unpack_codes(packed: np.ndarray, layout: LinearLayout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [rows, padded_inputs], zero points and scales [rows, groups], float32 each, without the factor."""
    quads = _untransposed(line_view(packed, layout, np.uint32), layout)
    if layout.kind == LinearKind.INT4:
        quads = np.stack([quads & 0x0F0F0F0F, quads >> 4 & 0x0F0F0F0F], axis=2).reshape(layout.rows, -1)
    codes = np.ascontiguousarray(quads).view(np.uint8).astype(np.float32)
    places, own = group_views(packed, layout)
    scales = _untransposed(places, layout).astype(np.float32)
    if own is None:
        dtype = np.uint8 if layout.kind == LinearKind.INT4 else np.float16
        zeros = np.full_like(scales, packed[:HEAD_BYTES].view(dtype)[0])
    else:
        zeros = _untransposed(own, layout).astype(np.float32)
    return codes, zeros, scales


def _untransposed(places: np.ndarray, layout: LinearLayout) -> np.ndarray:
    """[blocks, columns, lanes] back to [rows, columns]."""
    return places.transpose(0, 2, 1).reshape(layout.blocks * layout.lanes, -1)[: layout.rows]

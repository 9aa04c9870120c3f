"""The packings of compressed-tensors (llm-compressor): `pack-quantized`, and plain int8 weights.

pack-quantized:

    weight_packed     int32 [out, ceil(in * bits / 32)]     a dense bit stream along each row
    weight_scale      float [out, groups]; [out, 1] a channel; [1] or [1, 1] the whole tensor
    weight_shape      int64 [2] = [out, in]
    weight_zero_point int32 [ceil(out * bits / 32), groups] a dense bit stream down each column; absent: symmetric
    weight_g_idx      int32 [in], optional                  as GPTQ's g_idx; -1 in it means ignore

Codes and zero points are signed numbers stored with 2**(bits - 1) added, which is how `QuantizedTensor` holds them.
Before version 0.19 3-bit streams were not dense: ten codes and two spare bits a word; the width tells.

int-quantized and naive-quantized: `weight` int8 [out, in], `weight_scale`, and `weight_zero_point` int8 of its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgellm.errors import UsageError
from edgellm.formats.bits import WORD_BITS, pack_bits, unpack_bits, words_for
from edgellm.formats.gptq import act_order
from edgellm.formats.quantized import QuantizedTensor
from edgellm.formats.stored import CodePlaces, StoredTensor

BITS = (2, 3, 4, 8)


def pack(q: QuantizedTensor) -> dict[str, np.ndarray]:
    """The tensors `weight_packed`, `weight_scale`, `weight_shape`, and where `q` needs them `weight_zero_point`
    and `weight_g_idx`.

    Raises:
        UsageError: bits that are not supported, or a zero point of 2**bits.
    """
    outputs, inputs = q.shape
    if q.bits not in BITS:
        raise UsageError("compressed-tensors cannot hold it", key="bits", found=q.bits, allowed=str(BITS))
    if q.zeros.size and q.zeros.max() >= 1 << q.bits:
        raise UsageError("compressed-tensors cannot hold it", key="zeros", found=q.zeros.max())
    codes = q.codes
    tensors = {}
    if q.permutation is not None:
        codes, g_idx = np.empty_like(q.codes), np.empty(inputs, np.int32)
        codes[:, q.permutation], g_idx[q.permutation] = q.codes, np.arange(inputs) // q.group_size
        tensors["weight_g_idx"] = g_idx
    if not q.symmetric:
        columns = np.ascontiguousarray(q.zeros.T).astype(np.uint8)
        tensors["weight_zero_point"] = np.ascontiguousarray(pack_bits(columns, q.bits).T)
    return {
        "weight_packed": pack_bits(codes, q.bits),
        "weight_scale": q.scales,
        "weight_shape": np.array([outputs, inputs], np.int64),
        **tensors,
    }


def unpack(tensors: Mapping[str, np.ndarray], *, bits: int, group_size: int, in_features: int) -> QuantizedTensor:
    """The inverse of `pack`; `group_size` -1 means whole rows. `weight_shape` is not looked at: `read_linear` does.

    Raises:
        ModelError: `weight_g_idx` names a group that does not exist, or groups that are not full.
    """
    packed = tensors["weight_packed"]
    outputs, width = packed.shape
    group_size = in_features if group_size == -1 else group_size
    padded = width in widths(in_features, bits)[1:]
    codes = _unpack_padded(packed, bits, in_features) if padded else unpack_bits(packed, bits, in_features)
    permutation = act_order(filled_in(tensors.get("weight_g_idx")), in_features, group_size)
    if permutation is not None:
        codes = np.take(codes, permutation, axis=1)
    scales, zeros = _scales_and_zeros(tensors, outputs, bits, padded)
    return QuantizedTensor(codes, scales, zeros, bits, group_size, permutation)


def stored(
    tensors: Mapping[str, np.ndarray],
    read_words: Callable[[], np.ndarray],
    *,
    shape: tuple[int, int],
    bits: int,
    group_size: int,
) -> StoredTensor:
    """As `unpack` for a weight of `shape` [out, in] whose `weight_packed` stays in the file; `read_words` reads it.

    Raises:
        ModelError: as `unpack`.
        UsageError: codes of so many bits cross words.
    """
    outputs, inputs = shape
    group_size = inputs if group_size == -1 else group_size
    permutation = act_order(filled_in(tensors.get("weight_g_idx")), inputs, group_size)
    scales, zeros = _scales_and_zeros(tensors, outputs, bits, padded=False)
    width = words_for(inputs, bits)
    places = CodePlaces.along_rows(outputs, inputs, bits, width)
    return StoredTensor(read_words, places, 4 * width * outputs, scales, zeros, bits, group_size, permutation)


def _scales_and_zeros(
    tensors: Mapping[str, np.ndarray], outputs: int, bits: int, padded: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scales and int16 zero points, [out, groups] each; `padded`: ten 3-bit codes a word."""
    scales = _full(tensors["weight_scale"], outputs)
    packed = tensors.get("weight_zero_point")
    if packed is None:
        return scales, np.full(scales.shape, 1 << (bits - 1), np.int16)
    columns = np.ascontiguousarray(packed.T)
    padded = padded or len(packed) in widths(outputs, bits)[1:]
    columns = _unpack_padded(columns, bits, outputs) if padded else unpack_bits(columns, bits, outputs)
    return scales, np.ascontiguousarray(columns.T).astype(np.int16)


def unpack_int8(tensors: Mapping[str, np.ndarray], *, group_size: int) -> QuantizedTensor:
    """int8 `weight` [out, in] with `weight_scale` and, where asymmetric, `weight_zero_point`, as 8-bit codes."""
    weight = tensors["weight"]
    outputs, inputs = weight.shape
    scales = _full(tensors["weight_scale"], outputs)
    stored = tensors.get("weight_zero_point")
    zeros = np.full(scales.shape, 128, np.int16)
    if stored is not None:
        zeros += _full(stored, outputs)
    codes = weight.view(np.uint8) ^ np.uint8(128)
    return QuantizedTensor(codes, scales, zeros, 8, inputs if group_size == -1 else group_size)


def filled_in(g_idx: np.ndarray | None) -> np.ndarray | None:
    """`weight_g_idx`, or None where a -1 in it says that it was never filled in."""
    return None if g_idx is None or (g_idx == -1).any() else g_idx


def widths(count: int, bits: int) -> list[int]:
    """Words that `count` codes may fill: dense, and padded where that is another number."""
    dense, padded = words_for(count, bits), -(-count // (WORD_BITS // bits))
    return [dense] if bits != 3 or padded == dense else [dense, padded]


def _unpack_padded(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    shifts = np.arange(WORD_BITS // bits, dtype=np.uint32) * np.uint32(bits)
    fields = (np.ascontiguousarray(words).view(np.uint32)[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    return np.ascontiguousarray(fields.reshape(len(words), -1)[:, :count].astype(np.uint8))


def _full(per_group: np.ndarray, outputs: int) -> np.ndarray:
    """[out, groups] from [out, groups], [out, 1], or one value for the whole tensor."""
    if per_group.size == 1:
        return np.full((outputs, 1), per_group.reshape(()))
    return np.ascontiguousarray(per_group.reshape(outputs, -1))

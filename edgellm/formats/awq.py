"""The AWQ packings of AutoAWQ: always 4 bits, zero points stored as they are, never a permutation.

gemm, nearly every file:

    qweight int32 [in, out / 8]      nibble i of a word holds column 8 * c + ORDER[i] of the eight
    qzeros  int32 [groups, out / 8]  the same interleave
    scales  float [groups, out]

gemv:

    qweight int32 [out, in / 8]      plain order along in
    qzeros  int32 [out, Z]           plain order, padded: Z = `gemv_zeros_width`
    scales  float [out, 8 * Z]       padded likewise
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgellm.errors import UsageError
from edgellm.formats.bits import pack_bits, unpack_bits
from edgellm.formats.quantized import QuantizedTensor, group_count
from edgellm.formats.stored import CodePlaces, StoredTensor

BITS = 4
NIBBLES = 8  # in a word
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
VERSIONS = ("gemm", "gemv")


def pack(q: QuantizedTensor, *, version: str = "gemm") -> dict[str, np.ndarray]:
    """The tensors `qweight`, `qzeros` and `scales` of `q`.

    Raises:
        UsageError: bits other than 4, a permutation, a zero point of 16, a shape that does not fill words, or a
            version that is not written.
    """
    outputs, inputs = q.shape
    if q.bits != BITS or q.permutation is not None or (q.zeros.size and q.zeros.max() >= 1 << BITS):
        raise UsageError("AWQ holds 4-bit codes with zero points 0 to 15 in the order of the inputs", key="quantized")
    if version not in VERSIONS:
        raise UsageError("unknown AWQ version", key="version", found=version, allowed=", ".join(VERSIONS))
    if (outputs if version == "gemm" else inputs) % NIBBLES:
        raise UsageError("AWQ cannot hold this shape", key="shape", found=q.shape, allowed="multiples of 8")
    zeros = q.zeros.astype(np.uint8)
    if version == "gemm":
        return {
            "qweight": _interleave(q.codes.T),
            "qzeros": _interleave(zeros.T),
            "scales": np.ascontiguousarray(q.scales.T),
        }
    width = gemv_zeros_width(inputs, q.group_size)
    pad = ((0, 0), (0, width * NIBBLES - zeros.shape[1]))
    return {
        "qweight": pack_bits(q.codes, BITS),
        "qzeros": pack_bits(np.pad(zeros, pad), BITS),
        "scales": np.pad(q.scales, pad),
    }


def unpack(tensors: Mapping[str, np.ndarray], *, group_size: int, version: str = "gemm") -> QuantizedTensor:
    """The inverse of `pack`; `group_size` -1 means whole rows. Shapes must be those of the layout above."""
    qweight = tensors["qweight"]
    inputs = qweight.shape[0] if version == "gemm" else qweight.shape[1] * NIBBLES
    group_size = inputs if group_size == -1 else group_size
    codes = _deinterleave(qweight) if version == "gemm" else unpack_bits(qweight, BITS, inputs)
    return QuantizedTensor(codes, *_scales_and_zeros(tensors, inputs, group_size, version), BITS, group_size)


def stored(
    tensors: Mapping[str, np.ndarray],
    read_words: Callable[[], np.ndarray],
    *,
    shape: tuple[int, int],
    group_size: int,
    version: str = "gemm",
) -> StoredTensor:
    """As `unpack` for a weight of `shape` [out, in] whose `qweight` stays in the file; `read_words` reads it."""
    rows, inputs = shape
    group_size = inputs if group_size == -1 else group_size
    if version == "gemm":
        row, position = np.arange(rows), np.argsort(ORDER)
        width, no_shift = rows // NIBBLES, np.zeros(inputs, np.int64)
        shift = position[row % NIBBLES] * BITS
        places = CodePlaces(np.arange(inputs) * width, no_shift, row // NIBBLES, shift)
    else:
        places = CodePlaces.along_rows(rows, inputs, BITS, inputs // NIBBLES)
    small = _scales_and_zeros(tensors, inputs, group_size, version)
    return StoredTensor(read_words, places, rows * inputs // 2, *small, BITS, group_size)


def _scales_and_zeros(
    tensors: Mapping[str, np.ndarray], inputs: int, group_size: int, version: str
) -> tuple[np.ndarray, np.ndarray]:
    """Scales and int16 zero points, [out, groups] each."""
    qzeros, scales = tensors["qzeros"], tensors["scales"]
    if version == "gemm":
        zeros, scales = _deinterleave(qzeros), scales.T
    else:
        groups = group_count(inputs, group_size)
        zeros, scales = unpack_bits(qzeros, BITS, groups), scales[:, :groups]
    return np.ascontiguousarray(scales), zeros.astype(np.int16)


def gemv_zeros_width(in_features: int, group_size: int) -> int:
    """Words a row of gemv's zero points fills: padded to an even number for groups of 64, to four for 32."""
    multiple = 1 if group_size >= 128 else 2 if group_size >= 64 else 4
    words = -(-group_count(in_features, group_size) // NIBBLES)
    return -(-words // multiple) * multiple


def _deinterleave(words: np.ndarray) -> np.ndarray:
    """int32 [rows, columns / 8] -> uint8 [columns, rows]: transposed, which is what every caller wants."""
    rows, width = words.shape
    turned = np.ascontiguousarray(words.T).view(np.uint32)
    values = np.empty((width * NIBBLES, rows), np.uint8)
    for nibble, column in enumerate(ORDER):
        values[column::NIBBLES] = (turned >> np.uint32(BITS * nibble)) & np.uint32(15)
    return values


def _interleave(values: np.ndarray) -> np.ndarray:
    """uint8 [rows, columns] -> int32 [rows, columns / 8]."""
    rows, columns = values.shape
    grouped = values.reshape(rows, columns // NIBBLES, NIBBLES)
    return pack_bits(np.ascontiguousarray(grouped[:, :, ORDER]).reshape(rows, columns), BITS)

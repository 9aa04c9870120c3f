"""The GPTQ packing: the layout that AutoGPTQ defined and GPTQModel, auto-round and others write.

    qweight int32 [in * bits / 32, out]     a dense bit stream down each column (along in)
    qzeros  int32 [groups, out * bits / 32] a dense bit stream along each row (along out)
    scales  float [groups, out]
    g_idx   int32 [in], optional            the group of each input; act-order where it is not i // group_size

Zero points are stored in one of two ways. `gptq_v2` stores them as they are. `gptq` (v1) stores zero - 1, and then
writers differ on what a zero of 0 becomes: GPTQModel subtracts from the whole 32-bit word, so that a field borrows
from its neighbour (`word_carry`); all others stay within the field, where a stored all-ones field means 2**bits.
Where no stored field is all ones the two rules agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgellm.errors import ModelError, UsageError
from edgellm.formats.bits import WORD_BITS, pack_bits, unpack_bits
from edgellm.formats.quantized import QuantizedTensor, group_count
from edgellm.formats.stored import CodePlaces, StoredTensor

BITS = (2, 3, 4, 8)
CHECKPOINT_FORMATS = ("gptq", "gptq_v2")


def pack(q: QuantizedTensor, *, checkpoint_format: str = "gptq", word_carry: bool = False) -> dict[str, np.ndarray]:
    """The tensors `qweight`, `qzeros`, `scales` and `g_idx` of `q`.

    Raises:
        UsageError: the bits or the shape do not fit words of 32 bits, or a zero point cannot be stored under this
            rule (0 in v1 without `word_carry`, 2**bits otherwise).
    """
    outputs, inputs = q.shape
    if q.bits not in BITS:
        raise UsageError("GPTQ cannot hold it", key="bits", found=q.bits, allowed=str(BITS))
    if inputs * q.bits % WORD_BITS or outputs * q.bits % WORD_BITS:
        allowed = f"rows of whole 32-bit words of {q.bits}-bit codes"
        raise UsageError("GPTQ cannot hold this shape", key="shape", found=q.shape, allowed=allowed)
    permutation = np.arange(inputs, dtype=np.int32) if q.permutation is None else q.permutation
    groups = (np.arange(inputs) // q.group_size).astype(np.int32)
    codes, g_idx = q.codes, groups
    if q.permutation is not None:
        codes, g_idx = np.empty_like(q.codes), np.empty_like(groups)
        codes[:, permutation], g_idx[permutation] = q.codes, groups
    return {
        "qweight": np.ascontiguousarray(pack_bits(codes, q.bits).T),
        "qzeros": _pack_zeros(q.zeros.T, q.bits, checkpoint_format, word_carry),
        "scales": np.ascontiguousarray(q.scales.T),
        "g_idx": g_idx,
    }


def unpack(
    tensors: Mapping[str, np.ndarray],
    *,
    bits: int,
    group_size: int,
    checkpoint_format: str = "gptq",
    word_carry: bool = False,
) -> QuantizedTensor:
    """The inverse of `pack`; `g_idx` may be absent, `group_size` -1 means whole rows.

    Shapes must be those of the layout above; `read_linear` proves that for a file. scales are float16 or float32.

    Raises:
        ModelError: `g_idx` names a group that does not exist, or groups that are not full.
    """
    words, outputs = tensors["qweight"].shape
    inputs = words * WORD_BITS // bits
    group_size = inputs if group_size == -1 else group_size
    codes = unpack_bits(np.ascontiguousarray(tensors["qweight"].T), bits, inputs)
    permutation = act_order(tensors.get("g_idx"), inputs, group_size)
    if permutation is not None:
        codes = np.take(codes, permutation, axis=1)
    zeros = _unpack_zeros(tensors["qzeros"], bits, outputs, checkpoint_format, word_carry)
    scales = np.ascontiguousarray(tensors["scales"].T)
    return QuantizedTensor(codes, scales, np.ascontiguousarray(zeros.T), bits, group_size, permutation)


def stored(
    tensors: Mapping[str, np.ndarray],
    read_words: Callable[[], np.ndarray],
    *,
    shape: tuple[int, int],
    bits: int,
    group_size: int,
    checkpoint_format: str = "gptq",
    word_carry: bool = False,
) -> StoredTensor:
    """As `unpack` for a weight of `shape` [out, in] whose `qweight` stays in the file; `read_words` reads it.

    Raises:
        ModelError: as `unpack`.
        UsageError: codes of so many bits cross words.
    """
    outputs, inputs = shape
    group_size = inputs if group_size == -1 else group_size
    permutation = act_order(tensors.get("g_idx"), inputs, group_size)
    zeros = _unpack_zeros(tensors["qzeros"], bits, outputs, checkpoint_format, word_carry)
    scales, zeros = (np.ascontiguousarray(each.T) for each in (tensors["scales"], zeros))
    places = CodePlaces.along_columns(outputs, inputs, bits)
    word_bytes = inputs * outputs * bits // 8
    return StoredTensor(read_words, places, word_bytes, scales, zeros, bits, group_size, permutation)


def act_order(g_idx: np.ndarray | None, in_features: int, group_size: int) -> np.ndarray | None:
    """The permutation int32 [in] that sorts inputs by group, None where they are sorted already.

    A `g_idx` of zeros only was never filled in, and means nothing.

    Raises:
        ModelError: wrong length, a group out of range, or groups that are not full (key "g_idx", no file).
    """
    if g_idx is None:
        return None
    if g_idx.shape != (in_features,):
        raise ModelError("wrong shape", key="g_idx", found=list(g_idx.shape), allowed=f"[{in_features}]")
    if not g_idx.any():
        return None
    groups = group_count(in_features, group_size)
    low, high = int(g_idx.min()), int(g_idx.max())
    if low < 0 or high >= groups:
        raise ModelError(
            "names a group that does not exist", key="g_idx", found=f"{low} to {high}", allowed=f"0 to {groups - 1}"
        )
    expected = np.arange(in_features) // group_size
    if np.array_equal(g_idx, expected):
        return None
    permutation = np.argsort(g_idx, kind="stable").astype(np.int32)
    if not np.array_equal(g_idx[permutation], expected):
        counts = np.bincount(g_idx, minlength=groups)
        raise ModelError(
            "its groups are not full",
            key="g_idx",
            found=f"{counts.min()} to {counts.max()} inputs",
            allowed=str(group_size),
        )
    return permutation


def _pack_zeros(zeros: np.ndarray, bits: int, checkpoint_format: str, word_carry: bool) -> np.ndarray:
    """int16 [groups, out] -> int32 [groups, out * bits / 32]."""
    field_rule = _subtracts(checkpoint_format) and not word_carry
    low, high = (1, 1 << bits) if field_rule else (0, (1 << bits) - 1)
    if zeros.size and (zeros.min() < low or zeros.max() > high):
        found = f"{zeros.min()} to {zeros.max()}"
        raise UsageError(f"{checkpoint_format} cannot hold it", key="zeros", found=found, allowed=f"{low} to {high}")
    stored = zeros - 1 if field_rule else zeros
    if _subtracts(checkpoint_format) and word_carry and bits == 3:
        return pack_bits(((zeros - 1) & 7).astype(np.uint8), bits)
    words = pack_bits(np.ascontiguousarray(stored).astype(np.uint8), bits)
    if _subtracts(checkpoint_format) and word_carry:
        words = (words.view(np.uint32) - np.uint32(_ones(bits))).view(np.int32)
    return words


def _unpack_zeros(qzeros: np.ndarray, bits: int, outputs: int, checkpoint_format: str, word_carry: bool) -> np.ndarray:
    """int32 [groups, out * bits / 32] -> int16 [groups, out]."""
    if not _subtracts(checkpoint_format):
        return unpack_bits(qzeros, bits, outputs).astype(np.int16)
    if not word_carry:
        return unpack_bits(qzeros, bits, outputs).astype(np.int16) + np.int16(1)
    if bits == 3:  # three-bit fields cross words; GPTQModel wraps each field by itself
        return ((unpack_bits(qzeros, bits, outputs) + np.uint8(1)) & np.uint8(7)).astype(np.int16)
    words = np.ascontiguousarray(qzeros).view(np.uint32) + np.uint32(_ones(bits))
    return unpack_bits(words, bits, outputs).astype(np.int16)


def _ones(bits: int) -> int:
    """A word with 1 in every field: 0x11111111 for 4 bits."""
    return ((1 << WORD_BITS) - 1) // ((1 << bits) - 1)


def _subtracts(checkpoint_format: str) -> bool:
    if checkpoint_format not in CHECKPOINT_FORMATS:
        allowed = ", ".join(CHECKPOINT_FORMATS)
        raise UsageError("unknown", key="checkpoint_format", found=checkpoint_format, allowed=allowed)
    return checkpoint_format == "gptq"

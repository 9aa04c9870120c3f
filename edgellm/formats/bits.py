"""Dense little-endian bit streams: value k of b bits occupies bits k*b .. k*b+b-1 of the words, lowest first.

This is how every packing here stores codes; for 2, 4 and 8 bits it is the usual "32/b fields a word", for 3 bits it is
GPTQ's 32 values in three words. Eight values fill exactly b bytes, so a stream is taken apart byte-wise, one strided
pass for each position within the period, without a loop over values.
"""

from __future__ import annotations

import math

import numpy as np

WORD_BITS = 32


def words_for(count: int, bits: int) -> int:
    """How many 32-bit words `count` values of `bits` bits fill."""
    return -(-count * bits // WORD_BITS)


def unpack_bits(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` values of each row.

    Args:
        words: int32 or uint32 [..., W].
        bits: 1 to 8.
        count: at most 32 * W // bits.

    Returns:
        uint8 [..., count].
    """
    stream = np.ascontiguousarray(words).astype("<u4", copy=False).view(np.uint8)
    period = 8 // math.gcd(bits, 8)  # after so many values the next one begins at a byte again
    step = period * bits // 8
    mask = np.uint8((1 << bits) - 1)
    values = np.empty((*words.shape[:-1], count), np.uint8)
    for k in range(period):
        byte, shift = divmod(k * bits, 8)
        wanted = values[..., k::period]
        n = wanted.shape[-1]
        if n == 0:
            break
        part = stream[..., byte::step][..., :n] >> np.uint8(shift)
        if shift + bits > 8:
            part |= stream[..., byte + 1 :: step][..., :n] << np.uint8(8 - shift)
        np.bitwise_and(part, mask, out=wanted)
    return values


def pack_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `unpack_bits`: uint8 [..., count] -> int32 [..., words_for(count, bits)], zero-padded."""
    count = values.shape[-1]
    stream = np.zeros((*values.shape[:-1], words_for(count, bits) * 4), np.uint8)
    period = 8 // math.gcd(bits, 8)
    step = period * bits // 8
    for k in range(period):
        byte, shift = divmod(k * bits, 8)
        part = values[..., k::period]
        n = part.shape[-1]
        if n == 0:
            break
        stream[..., byte::step][..., :n] |= part << np.uint8(shift)
        if shift + bits > 8:
            stream[..., byte + 1 :: step][..., :n] |= part >> np.uint8(8 - shift)
    return stream.view("<i4").astype(np.int32, copy=False)

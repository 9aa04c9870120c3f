"""Random GGUF blocks whose values have a given standard deviation; numpy alone.

A million or so distinct bytes are made once and dealt out again and again, each time from another place: the time of a
kernel does not depend on the numbers, and activations stay finite.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tools.peers.tensor_types import BLOCKS, GGUFTensor

_BLOCKS = 8191  # a prime, so that rows do not coincide
_PART_BYTES = 16 << 20
#: Standard deviation of the codes about zero, uniform over their range.
_SPREAD = {"Q4_0": 4.6, "Q5_0": 9.2, "Q8_0": 73.6, "Q4_K": 4.6, "Q6_K": 18.5}


class RandomBlocks:
    """Makes tensors of any type in `BLOCKS`."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)

    def parts(self, tensor: GGUFTensor, spread: float) -> Iterator[np.ndarray]:
        """The tensor's bytes in order, uint8 arrays of at most a few MB.

        Args:
            tensor: what to fill.
            spread: standard deviation of the values; norms are around 1, F32 biases around 0.
        """
        block = self._pattern(tensor, spread)
        left = tensor.nbytes
        repeated = np.tile(block, max(1, min(_PART_BYTES, left) // len(block) + 1))
        size = BLOCKS[tensor.type][1]
        start = int(self._random.integers(_BLOCKS)) * size % len(repeated) // size * size
        while left:
            part = repeated[start : start + left]
            yield part
            left -= len(part)
            start = 0

    def _pattern(self, tensor: GGUFTensor, spread: float) -> np.ndarray:
        random, kind = self._random, tensor.type
        if kind in ("F32", "F16"):
            mean = 1.0 if tensor.name.endswith(("norm.weight", "rope_freqs.weight")) else 0.0
            values = random.standard_normal(_BLOCKS) * spread + mean
            return values.astype("<f4" if kind == "F32" else "<f2").view(np.uint8)
        blocks = random.integers(0, 256, (_BLOCKS, BLOCKS[kind][1]), np.uint8)
        if kind == "Q8_0":
            blocks[:, 2:] = random.integers(-127, 128, (_BLOCKS, 32)).astype(np.int8).view(np.uint8)
        if kind == "Q4_K":  # d, dmin, twelve bytes of 6-bit scales and minima, codes of 0 to 15
            # all scales and minima 32: value = d * 32 * code - dmin * 32, so dmin = 7.5 d centres it
            self._scale(blocks, 0, spread / _SPREAD[kind] / 32)
            blocks[:, 2:4] = (blocks[:, 0:2].copy().view("<f2") * np.float16(7.5)).astype("<f2").view(np.uint8)
            blocks[:, 4:16] = np.array([0x20] * 8 + [0x00] * 4, np.uint8)
            blocks[:, 4:12] |= np.uint8(0x80)  # the upper two bits of scales and minima 4 to 7
        elif kind == "Q6_K":  # low and high bits, sixteen int8 scales, d
            blocks[:, 192:208] = np.uint8(32)
            self._scale(blocks, 208, spread / _SPREAD[kind] / 32)
        else:
            self._scale(blocks, 0, spread / _SPREAD[kind])
        return blocks.reshape(-1)

    def _scale(self, blocks: np.ndarray, at: int, typical: float) -> None:
        scales = np.exp(self._random.standard_normal(len(blocks)) * 0.2) * typical
        blocks[:, at : at + 2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)

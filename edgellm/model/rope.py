"""Rotary position embedding: which angles, as numbers (RoFormer, arXiv:2104.09864).

Pair j of a head (elements j and j + rotary_dim/2, "rotate half") turns by `position * inv_freq[j]`. Angles are computed
in float64: in float32 they are off by 4e-3 rad at position 131,072 and by 0.05 at a million.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from edgellm.model.reader import ObjectReader

ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rope:
    """One way to rotate.

    Attributes:
        theta: base of the frequencies (`rope_theta`).
        rotary_dim: elements of a head that turn, the first ones; the rest pass.
        rope_type: "default", "linear" or "llama3".
        factor: the scaling of "linear" and "llama3".
        low_freq_factor, high_freq_factor, original_max_position_embeddings: of "llama3".
    """

    theta: float
    rotary_dim: int
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    @lru_cache(maxsize=64)  # noqa: B019 - a Rope is a few numbers, and a model has one or two
    def inv_freq(self) -> np.ndarray:
        """Radians a position, float64 [rotary_dim / 2], not to be written to."""
        frequencies = self.theta ** (-np.arange(0, self.rotary_dim, 2, dtype=np.float64) / self.rotary_dim)
        if self.rope_type == "linear":  # position interpolation, arXiv:2306.15595
            return frequencies / self.factor
        if self.rope_type == "llama3":
            return self._llama3(frequencies)
        return frequencies

    def _llama3(self, frequencies: np.ndarray) -> np.ndarray:
        """Llama 3.1: long wavelengths are stretched, short ones kept, those between are blended."""
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        smooth = np.clip(smooth, 0.0, 1.0)
        return (1 - smooth) * frequencies / self.factor + smooth * frequencies

    def cos_sin(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines for `positions` int64 [T]: two float32 [T, rotary_dim / 2]."""
        angles = positions.astype(np.float64)[:, None] * self.inv_freq()
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def read_rope(config: ObjectReader, head_dim: int, layer_type: str | None = None) -> Rope:
    """The rotation a config asks for, in the spelling of transformers 4 (`rope_theta`, `rope_scaling`) or 5
    (`rope_parameters`, nested by layer type where `layer_type` is given and the file nests it).

    Raises:
        ModelError: an unknown rope type (it is never ignored), or a value out of range.
    """
    parameters = config.child("rope_parameters")
    if parameters is not None and layer_type is not None and layer_type in parameters:
        parameters = parameters.child(layer_type)
    scaling = parameters or config.child("rope_scaling")
    base = parameters if parameters is not None and "rope_theta" in parameters else config
    theta = base.number("rope_theta", 1.0, 1e12, 10000.0)
    partial = parameters if parameters is not None and "partial_rotary_factor" in parameters else config
    rotary_dim = int(head_dim * partial.number("partial_rotary_factor", 0.01, 1.0, 1.0))
    if rotary_dim % 2 or rotary_dim == 0:
        raise config.error("head_dim", f"rotary positions need an even number of elements, this is {rotary_dim}")
    if scaling is None:
        return Rope(theta, rotary_dim)
    return _scaled(scaling, config, theta, rotary_dim)


def _scaled(scaling: ObjectReader, config: ObjectReader, theta: float, rotary_dim: int) -> Rope:
    key = "rope_type" if "rope_type" in scaling else "type"
    rope_type = scaling.text(key, "default", ROPE_TYPES)
    if rope_type == "default":
        return Rope(theta, rotary_dim)
    factor = scaling.number("factor", 1e-3, 1e6)
    if rope_type == "linear":
        return Rope(theta, rotary_dim, rope_type, factor)
    low = scaling.number("low_freq_factor", 1e-6, 1e6)
    high = scaling.number("high_freq_factor", 1e-6, 1e6)
    if high <= low:
        raise scaling.error("high_freq_factor", "must be above low_freq_factor", f"a number above {low:g}")
    original = scaling.integer("original_max_position_embeddings", 1, 1 << 27)
    return Rope(theta, rotary_dim, rope_type, factor, low, high, original)

"""Angles of rotary positions as 64-bit fixed-point turns, for kernels.

A pair of a head turns by inv_freq radians a token. As a fraction of a whole turn, times 2^64, that is one u64 word, and
the word times a token's number, wrapping, is the angle of that token: integers lose nothing, however long the sequence
is. Only the word itself is rounded, so the angle of token n is off by n * 2^-64 turns at most.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

_TWO_PI = 2 * Fraction("3.14159265358979323846264338327950288419716939937511")


def turn_words(inv_freq: np.ndarray) -> np.ndarray:
    """Turns a token in units of 2^-64, u64 [rotary_dim / 2], of radians a token, float64 [rotary_dim / 2]."""
    return np.array([round(Fraction(radians) / _TWO_PI * 2**64) % 2**64 for radians in inv_freq.tolist()], np.uint64)

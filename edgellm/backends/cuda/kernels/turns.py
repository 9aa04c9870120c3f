"""Angles of rotary positions as 64-bit fixed-point turns, for kernels.

A pair of a head turns by inv_freq radians a token. As a fraction of a whole turn, times 2^64, that is one u64 word, and
the word times a token's number, wrapping, is the angle of that token exactly: integers lose nothing, however long the
sequence is. Only the word itself is rounded, to the 53 bits of a float64.
"""

from __future__ import annotations

import math

import numpy as np


def turn_words(inv_freq: np.ndarray) -> np.ndarray:
    """Turns a token in units of 2^-64, u64 [rotary_dim / 2], of radians a token, float64 [rotary_dim / 2]."""
    turns = inv_freq / (2 * math.pi)
    return np.array([int((turn - math.floor(turn)) * 2.0**64) % 2**64 for turn in turns.tolist()], np.uint64)

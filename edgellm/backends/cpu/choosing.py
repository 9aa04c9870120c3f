"""The token with the largest logit, from the largest of each part of a row (`best.py`)."""

from __future__ import annotations

import numpy as np

#: Parts of a row: many threads have work, and one part is quickly gone through.
PARTS = 64


def part_size(vocab_size: int) -> int:
    """Ids of a part; the last ones may have fewer, or none."""
    return -(-vocab_size // PARTS)


def best_tokens(best: np.ndarray, logits: np.ndarray, limit: int) -> np.ndarray:
    """The first of the ids below `limit` that have the largest logit; -1 where a logit is NaN or infinite.

    Args:
        best: float32 [R, PARTS], as `op_best` left them.
        logits: float32 [R, V].
    """
    tokens = np.empty(len(best), np.int64)
    size = part_size(logits.shape[1])
    for row, part in enumerate(best.argmax(axis=1).tolist()):  # the first NaN where there is one
        begin = part * size
        own = logits[row, begin : min(begin + size, limit)]
        tokens[row] = begin + int(own.argmax()) if np.isfinite(best[row, part]) else -1
    return tokens

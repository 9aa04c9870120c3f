"""embed: out = embed_tokens[token_ids] * multiplier."""

from __future__ import annotations

import numpy as np


def forward(table: np.ndarray, token_ids: np.ndarray, multiplier: float) -> np.ndarray:
    """Rows of `table` [V, D] for `token_ids` [B * T], times `multiplier`."""
    rows = table[token_ids]
    return rows if multiplier == 1.0 else rows * float(multiplier)


def backward(g: np.ndarray, token_ids: np.ndarray, multiplier: float, into: np.ndarray) -> None:
    """Add the gradient of the table to `into` [V, D]. Rows of one token are summed first: ids repeat."""
    order = np.argsort(token_ids, kind="stable")
    ids, starts = np.unique(token_ids[order], return_index=True)
    into[ids] += np.add.reduceat(g[order], starts, axis=0) * float(multiplier)

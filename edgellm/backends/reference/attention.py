"""Attention of one sequence's new tokens over what its slot keeps.

Keys are stored unturned and turned here to their present positions, so an eviction costs nothing and rounds nothing.
Dimensions: T new tokens, N kept tokens (the new ones included), H heads, KvH KV heads, Hd head_dim.
"""

from __future__ import annotations

import numpy as np

from edgellm.backends.reference import ops
from edgellm.backends.reference.cache import ReferenceCache
from edgellm.backends.slots import SlotState
from edgellm.model.program import Op


def attend(q: np.ndarray, cache: ReferenceCache, state: SlotState, op: Op) -> np.ndarray:
    """softmax(softcap(q k^T * scale) + mask) v.

    Args:
        q: float32 [T, H, Hd], turned to their positions.
        cache: holds the new tokens' keys and values already.
        state: the slot before the step.
        op: the attention op.

    Returns:
        float32 [T, H * Hd].
    """
    new = np.arange(state.end, state.end + len(q))  # numbers of the new tokens
    window = op.attributes["window"]
    oldest = 0 if window is None else max(state.end - window + 1, 0)
    kept = state.numbers(state.end + len(q), oldest)
    keys, values = cache.read(op.layer, state, kept)  # (N, KvH, Hd)
    rope = op.attributes["rope"]
    if rope is not None:
        keys = ops.rope(keys, *rope.cos_sin(state.positions(kept)))
    visible = kept[None, :] <= new[:, None]  # (T, N)
    if window is not None:
        visible &= kept[None, :] > new[:, None] - window
    tokens, heads, head_dim = q.shape
    groups = heads // keys.shape[1]
    q = q.reshape(tokens, -1, groups, head_dim).transpose(1, 2, 0, 3)  # (KvH, H / KvH, T, Hd)
    scores = q @ keys.transpose(1, 2, 0)[:, None] * np.float32(op.attributes["scale"])  # (KvH, H / KvH, T, N)
    scores = ops.softcap(scores, op.attributes["softcap"])
    scores = np.where(visible, scores, np.float32(-np.inf))
    scores -= scores.max(axis=-1, keepdims=True)  # a token sees itself, so the maximum is finite
    weights = np.exp(scores)
    weights /= weights.sum(axis=-1, keepdims=True)
    out = weights @ values.transpose(1, 0, 2)[:, None]  # (KvH, H / KvH, T, Hd)
    return out.transpose(2, 0, 1, 3).reshape(tokens, heads * head_dim)

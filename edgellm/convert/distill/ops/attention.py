"""attention: softmax(softcap(q.k * scale) + mask) v within each sequence, causal, at most `window` tokens back.

Queries are taken a span at a time against the keys that any of them sees, which leaves out most of what the causal
mask would throw away. The H / KvH = G queries that share a KV head stand below each other, so that a span of a KV head
is one matrix product.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from edgellm.convert.distill.ops import softcap

#: Queries of a span: short enough that little is masked, long enough for a matrix product.
SPAN = 64


@dataclass(frozen=True)
class Span:
    """Kept of queries first..last-1, which see keys oldest..last-1, N of them.

    Attributes:
        probabilities: [B, KvH, G * (last - first), N].
        capped: the capped scores, of the same shape, where the op caps them.
    """

    first: int
    last: int
    oldest: int
    probabilities: np.ndarray
    capped: np.ndarray | None


@dataclass(frozen=True)
class Saved:
    """Kept for the backward: q [B, KvH, G, T, Hd], k, v [B, KvH, T, Hd] and the spans."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    spans: tuple[Span, ...]


def forward(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, window: int | None, cap: float | None
) -> tuple[np.ndarray, Saved]:
    """q [B, T, H, Hd]; k, v [B, T, KvH, Hd], turned to their positions. Returns [B * T, H * Hd]."""
    batch, tokens, heads, head_dim = q.shape
    q, k, v = _by_kv_head(q, k.shape[2]), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    out = np.empty((batch, k.shape[1], q.shape[2], tokens, head_dim), q.dtype)
    spans = []
    for first in range(0, tokens, SPAN):
        last = min(first + SPAN, tokens)
        oldest = 0 if window is None else max(first - window + 1, 0)
        queries = _rows(q, first, last)
        scores = (queries * float(scale)) @ k[:, :, oldest:last].swapaxes(-1, -2)
        capped = None
        if cap is not None:
            capped = softcap.forward(scores, cap)
            scores = capped.copy()
        by_token = scores.reshape(*scores.shape[:2], -1, last - first, last - oldest)  # a view
        by_token += _mask(last - first, last - oldest, window, scores.dtype)
        scores -= scores.max(axis=-1, keepdims=True)  # a token sees itself, so the maximum is finite
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        found = scores @ v[:, :, oldest:last]
        out[:, :, :, first:last] = found.reshape(*found.shape[:2], -1, last - first, head_dim)
        spans.append(Span(first, last, oldest, scores, capped))
    return _by_token(out).reshape(batch * tokens, heads * head_dim), Saved(q, k, v, tuple(spans))


def backward(g: np.ndarray, saved: Saved, scale: float, cap: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of q [B, T, H, Hd], k and v [B, T, KvH, Hd]; g [B * T, H * Hd].

    With P the probabilities: dV = P^T g, dP = g V^T, dS = P * (dP - sum(dP * P)), dQ = dS K, dK = dS^T Q.
    """
    batch, kv_heads, groups, tokens, head_dim = saved.q.shape
    g = _by_kv_head(g.reshape(batch, tokens, kv_heads * groups, head_dim), kv_heads)
    grad_q = np.empty(saved.q.shape, g.dtype)
    grad_k, grad_v = np.zeros(saved.k.shape, g.dtype), np.zeros(saved.v.shape, g.dtype)
    for span in saved.spans:
        first, last, keys = span.first, span.last, slice(span.oldest, span.last)
        rows, p = _rows(g, first, last), span.probabilities
        grad_v[:, :, keys] += p.swapaxes(-1, -2) @ rows
        grad = rows @ saved.v[:, :, keys].swapaxes(-1, -2)
        grad -= np.einsum("bkqt,bkqt->bkq", grad, p)[..., None]
        grad *= p
        if span.capped is not None:
            grad = softcap.backward(grad, span.capped, cap)
        found = grad @ saved.k[:, :, keys]
        found *= float(scale)
        grad_q[:, :, :, first:last] = found.reshape(batch, kv_heads, groups, last - first, head_dim)
        queries = _rows(saved.q, first, last)
        grad_k[:, :, keys] += grad.swapaxes(-1, -2) @ (queries * float(scale))
    return _by_token(grad_q), grad_k.transpose(0, 2, 1, 3), grad_v.transpose(0, 2, 1, 3)


def saved_numbers(tokens: int, heads: int, window: int | None, capped: bool) -> int:
    """Numbers in the spans of one sequence, for the memory plan."""
    total = 0
    for first in range(0, tokens, SPAN):
        last = min(first + SPAN, tokens)
        total += (last - first) * (last - (0 if window is None else max(first - window + 1, 0)))
    return total * heads * (2 if capped else 1)


def _by_kv_head(x: np.ndarray, kv_heads: int) -> np.ndarray:
    """[B, T, H, Hd] as [B, KvH, G, T, Hd]."""
    batch, tokens, heads, head_dim = x.shape
    return x.reshape(batch, tokens, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)


def _rows(x: np.ndarray, first: int, last: int) -> np.ndarray:
    """Tokens first..last-1 of [B, KvH, G, T, Hd], as [B, KvH, G * (last - first), Hd]."""
    batch, kv_heads, _, _, head_dim = x.shape
    return x[:, :, :, first:last].reshape(batch, kv_heads, -1, head_dim)


def _by_token(x: np.ndarray) -> np.ndarray:
    """[B, KvH, G, T, Hd] as [B, T, H, Hd]."""
    batch, kv_heads, groups, tokens, head_dim = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, kv_heads * groups, head_dim)


@functools.lru_cache(maxsize=64)
def _mask(queries: int, keys: int, window: int | None, dtype: np.dtype) -> np.ndarray:
    """[queries, keys], the last of both being one token: 0 where a query sees a key, -inf where it does not."""
    back = (np.arange(queries) + keys - queries)[:, None] - np.arange(keys)[None, :]
    visible = (back >= 0) & (back < (keys if window is None else window))
    return np.where(visible, 0, -np.inf).astype(dtype)

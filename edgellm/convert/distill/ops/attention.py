"""attention: softmax(softcap(q.k * scale) + mask) v within each sequence, causal, at most `window` tokens back.

The queries of the H / KvH heads that share a KV head stand below each other, so that each KV head is one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgellm.convert.distill.ops import softcap


@dataclass(frozen=True)
class Saved:
    """Kept for the backward: q [B, KvH, G * T, Hd], k, v [B, KvH, T, Hd], the probabilities [B, KvH, G * T, T], and the
    capped scores of the same shape where the op caps them."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    probabilities: np.ndarray
    capped: np.ndarray | None


def forward(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, window: int | None, cap: float | None
) -> tuple[np.ndarray, Saved]:
    """q [B, T, H, Hd]; k, v [B, T, KvH, Hd], turned to their positions. Returns [B * T, H * Hd]."""
    batch, tokens, heads, head_dim = q.shape
    q, k, v = _by_kv_head(q, k.shape[2]), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = q @ k.swapaxes(-1, -2)
    scores *= float(scale)
    capped = None
    if cap is not None:
        capped = softcap.forward(scores, cap)
        scores = capped.copy()
    by_token = scores.reshape(batch, -1, tokens, tokens)  # a view: (B, KvH * G, T, T)
    by_token += _mask(tokens, window, scores.dtype)
    scores -= scores.max(axis=-1, keepdims=True)  # a token sees itself, so the maximum is finite
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    out = _by_token(scores @ v, tokens)
    return out.reshape(batch * tokens, heads * head_dim), Saved(q, k, v, scores, capped)


def backward(g: np.ndarray, saved: Saved, scale: float, cap: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of q [B, T, H, Hd], k and v [B, T, KvH, Hd]; g [B * T, H * Hd].

    With P the probabilities: dV = P^T g, dP = g V^T, dS = P * (dP - sum(dP * P)), dQ = dS K, dK = dS^T Q.
    """
    batch, kv_heads, rows, head_dim = saved.q.shape
    tokens = saved.k.shape[2]
    heads = kv_heads * rows // tokens
    g = _by_kv_head(g.reshape(batch, tokens, heads, head_dim), kv_heads)
    grad_v = saved.probabilities.swapaxes(-1, -2) @ g
    grad = g @ saved.v.swapaxes(-1, -2)
    grad -= np.einsum("bkqt,bkqt->bkq", grad, saved.probabilities)[..., None]
    grad *= saved.probabilities
    if saved.capped is not None:
        grad = softcap.backward(grad, saved.capped, cap)
    grad *= float(scale)
    grad_q = _by_token(grad @ saved.k, tokens)
    grad_k = grad.swapaxes(-1, -2) @ saved.q
    return grad_q, grad_k.transpose(0, 2, 1, 3), grad_v.transpose(0, 2, 1, 3)


def _by_kv_head(x: np.ndarray, kv_heads: int) -> np.ndarray:
    """[B, T, H, Hd] as [B, KvH, G * T, Hd]."""
    batch, tokens, heads, head_dim = x.shape
    grouped = x.reshape(batch, tokens, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    return grouped.reshape(batch, kv_heads, -1, head_dim)


def _by_token(x: np.ndarray, tokens: int) -> np.ndarray:
    """[B, KvH, G * T, Hd] as [B, T, H, Hd]."""
    batch, kv_heads, rows, head_dim = x.shape
    grouped = x.reshape(batch, kv_heads, rows // tokens, tokens, head_dim).transpose(0, 3, 1, 2, 4)
    return grouped.reshape(batch, tokens, -1, head_dim)


def _mask(tokens: int, window: int | None, dtype: np.dtype) -> np.ndarray:
    """[T, T]: 0 where a query (row) sees a key, -inf where it does not."""
    back = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    visible = (back >= 0) & (back < (tokens if window is None else window))
    return np.where(visible, 0, -np.inf).astype(dtype)

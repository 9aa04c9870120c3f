"""The arithmetic of each kind of op (see `model/program.py` for the formulas), float32 throughout.

Dimensions: T tokens, D the width of a buffer, O out_features, H heads, Hd head_dim, V vocab_size.
"""

from __future__ import annotations

import math

import numpy as np


def embed(table: np.ndarray, token_ids: np.ndarray, multiplier: float) -> np.ndarray:
    """Rows of `table` [V, D] for `token_ids` [T], times `multiplier`: [T, D]."""
    return table[token_ids] * np.float32(multiplier)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float, offset: float, group: int | None = None) -> np.ndarray:
    """x [T, D] / sqrt(mean(x^2) + eps) * (offset + weight); over each run of `group` elements where given."""
    grouped = x.reshape(len(x), -1, group or x.shape[1])  # (T, D / group, group)
    mean_square = np.mean(np.square(grouped), axis=-1, keepdims=True, dtype=np.float32)
    scaled = grouped / np.sqrt(mean_square + np.float32(eps)) * (np.float32(offset) + weight)
    return scaled.reshape(x.shape)


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """x [T, D] times weight [O, D] transposed, plus bias [O]: [T, O]."""
    y = x @ weight.T
    return y if bias is None else y + bias


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Turn the first elements of each head of x [T, H, Hd]; cos, sin [T, rotary_dim / 2], rotate-half pairing."""
    half = cos.shape[1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def act_mul(gate: np.ndarray, up: np.ndarray, act: str) -> np.ndarray:
    """act(gate) * up (GLU variants, arXiv:2002.05202), [T, D]."""
    return ACTIVATIONS[act](gate) * up


def softcap(x: np.ndarray, cap: float | None) -> np.ndarray:
    """cap * tanh(x / cap), or x where there is no cap."""
    return x if cap is None else np.float32(cap) * np.tanh(x / np.float32(cap))


def _silu(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # exp(-x) = inf for x < -88: x / inf is the right limit, 0
        return x / (1 + np.exp(-x))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (1 + np.tanh(inner))


def _gelu(x: np.ndarray) -> np.ndarray:
    erf = np.frompyfunc(math.erf, 1, 1)(x / np.float32(math.sqrt(2))).astype(np.float32)
    return np.float32(0.5) * x * (1 + erf)


ACTIVATIONS = {"silu": _silu, "gelu": _gelu, "gelu_pytorch_tanh": _gelu_tanh}

"""The race of exponentials that `kernels/sampling.py` runs, in NumPy: what a draw on the device must give."""

from __future__ import annotations

import numpy as np

from edgellm.backends.interface import Choice


def philox(counter: list[np.ndarray], key: list[int]) -> list[np.ndarray]:
    """Philox4x32-10 on arrays of counter words."""
    c, k, mask = [np.asarray(word, np.uint64) for word in counter], list(key), np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        high_a, high_b = a >> np.uint64(32), b >> np.uint64(32)
        c = [high_b ^ c[1] ^ np.uint64(k[0]), b & mask, high_a ^ c[3] ^ np.uint64(k[1]), a & mask]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def exponentials(count: int, seed: int, draw: int) -> np.ndarray:
    """Float64 [count], one a token."""
    ids = np.arange(count)
    words = philox([ids // 4, np.full(count, draw), 0 * ids, 0 * ids], [seed & 0xFFFFFFFF, seed >> 32])
    return -np.log1p(-(np.choose(ids % 4, words).astype(np.float64) + 0.5) / 2**32)


def drawn(logits: np.ndarray, choice: Choice) -> int:
    """The token of a row of logits."""
    logits = logits[: choice.vocab_size].astype(np.float64)
    if choice.temperature == 0:
        return int(logits.argmax())
    kept = np.argsort(-logits, kind="stable")[: choice.top_k or None]
    sums = np.exp((logits[kept] - logits[kept[0]]) / choice.temperature).cumsum()
    kept = kept[: np.searchsorted(sums, choice.top_p * sums[-1] * (1 - 1e-9)) + 1]
    noise = exponentials(logits.size, choice.seed, choice.draw)[kept]
    return int(kept[(logits[kept] / choice.temperature - np.log(noise)).argmax()])

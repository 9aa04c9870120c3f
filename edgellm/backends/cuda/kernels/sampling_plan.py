"""Constants of sampling on the device that the runtime needs."""

from __future__ import annotations

#: Threads of a block.
SAMPLE_THREADS = 256
#: What a row gets in place of a token where a logit is NaN or infinite.
NOT_FINITE = 0xFFFFFFFF


def sample_grid(vocab: int, multiprocessors: int) -> int:
    """Blocks of `sample_blocks` along the vocabulary: at most one a multiprocessor, each with four ids a thread."""
    return max(1, min(multiprocessors, -(-vocab // (4 * SAMPLE_THREADS))))

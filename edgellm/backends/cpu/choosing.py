"""How a row of logits is cut into parts, to find the largest of them (`best.py`)."""

from __future__ import annotations

#: Parts of a row: many threads have work, and one part is quickly gone through.
PARTS = 64


def part_size(vocab_size: int) -> int:
    """Ids of a part; the last ones may have fewer, or none."""
    return -(-vocab_size // PARTS)

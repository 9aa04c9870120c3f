"""Partial results of attention that is split over the context, and how they are put together.

Split p of `splits` leaves for each of R rows (the sequences of a decode step, the tokens of a prefill step) and each
query head

    sums     float32 [R][heads][splits][head_dim]     sum over its keys of exp(score - largest) * value
    stats    float32 [R][heads][splits][2]            LARGEST score, in units of log2 (the score times log2 e), and
                                                      TOTAL, the sum of exp2(score - largest)

A split without keys leaves `TOTAL` 0 and `LARGEST` `EMPTY`, and nothing in `sums`, which then must not be read (memory
may hold NaN). With m the largest over the splits that are not empty, and always in the order of the splits,

    out = sum_p 2^(LARGEST_p - m) sums_p / sum_p 2^(LARGEST_p - m) TOTAL_p

A kernel that is told to `combine` lets the block that comes last do this; it counts blocks in `counters` (u32 [R][KV
heads * tiles], zero before the first step) and leaves them zero again.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Fields of `stats`.
LARGEST = 0
TOTAL = 1
STATS = 2
#: `LARGEST` of a split without keys: finite, so that a difference of two is no NaN.
EMPTY = -1.0e30

#: Fewest keys that are worth a split of their own.
SPLIT_KEYS = 64
#: Most splits.
MAX_SPLITS = 64


def decode_splits(rows: int, blocks_a_split: int, multiprocessors: int) -> int:
    """Splits of a layer that holds `rows`, fixed when a graph is captured.

    Args:
        rows: of the layer, `CacheGeometry.rows`: the most keys a token can see.
        blocks_a_split: blocks that each split adds to the grid: sequences * KV heads * tiles of query heads.
        multiprocessors: of the device.

    Returns:
        so many that a full context keeps every multiprocessor busy with two blocks; which of them have work is decided
        by the length that the kernel reads.
    """
    wanted = -(-2 * multiprocessors // max(blocks_a_split, 1))
    return max(1, min(wanted, -(-rows // SPLIT_KEYS), MAX_SPLITS))


#: What there are decode kernels for: lanes that share a row (eight elements each) and query heads of a block. The sums
#: and queries of eight heads would not stay in registers.
DECODE_LANES = (8, 16, 32)
DECODE_HEADS = (1, 2, 4)


def decode_kernel(storage: str, head_dim: int, group: int) -> tuple[str, int]:
    """The decode kernel for heads of `head_dim`, `group` of which share a KV head, and the tiles of query heads."""
    lanes = next(lanes for lanes in DECODE_LANES if head_dim <= 8 * lanes)
    heads = next((heads for heads in DECODE_HEADS if group <= heads), DECODE_HEADS[-1])
    return f"attention_decode_{storage}_d{8 * lanes}_h{heads}", -(-group // heads)


#: Prefill on the tensor cores: widths of heads there are kernels for, rows (tokens times query heads of a KV head) of a
#: block, columns of the values that a block has.
PREFILL_WIDTHS = (64, 128, 256)
PREFILL_ROWS = 64
VALUE_COLUMNS = 128


@dataclass(frozen=True)
class PrefillKernel:
    """A prefill kernel and its grid: `tokens` a block on the x axis, KV heads * `parts` on the y axis."""

    name: str
    tokens: int
    parts: int


def prefill_kernel(storage: str, head_dim: int, group: int, capability: int) -> PrefillKernel | None:
    """The prefill kernel for such heads on a device of that compute capability (87 means 8.7).

    None below 7.5, which has no `ldmatrix`, and for more query heads a KV head than a block has rows: there the decode
    kernel takes the tokens as its rows, without `fused`.
    """
    if capability < 75 or group > PREFILL_ROWS:
        return None
    width = next(width for width in PREFILL_WIDTHS if head_dim <= width)
    name = f"attention_prefill_{storage}_d{width}" + ("_k8" if capability < 80 else "")
    return PrefillKernel(name, PREFILL_ROWS // group, -(-width // VALUE_COLUMNS))

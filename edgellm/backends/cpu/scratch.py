"""Scratch that kernels need beside their operands, from shapes alone: what Python allocates before it calls them."""

from __future__ import annotations

from edgellm.backends.cpu.attention_plan import TILE_QUERIES
from edgellm.backends.cpu.cache import CHUNK
from edgellm.backends.cpu.layout import round_up
from edgellm.simd.target import F32_LANES

#: Floats of the softmax's statistics that attention keeps for a query, and the scale of the query's words.
STATISTICS = 7
#: Where packing a dense weight keeps a block's columns, behind two squares of LANES by LANES.
PACK_COLUMNS = 2 * F32_LANES * F32_LANES
#: Words of a line that `regroup` turns, and floats of scratch that it needs.
REGROUP_WORDS = 8
REGROUP_STAGE = REGROUP_WORDS * F32_LANES
#: Queries of a tile are rounded up to it, so that what lies behind them begins with a cache line.
LINE_FLOATS = 16


def attention_scratch(head_dim: int, groups: int) -> tuple[int, int]:
    """(float32, bytes) of scratch that a thread of `op_attention` needs, whole cache lines."""
    queries = round_up(max(TILE_QUERIES, groups), LINE_FLOATS)
    depth = round_up(head_dim, F32_LANES)
    floats = queries * (2 * depth + CHUNK + STATISTICS) + max(CHUNK, depth) + F32_LANES
    return floats, max(CHUNK * depth * 4, (CHUNK * depth + queries * (depth + CHUNK)) * 2)


def partial_width(head_dim: int) -> int:
    """Floats of one partial result of one head."""
    return round_up(head_dim, F32_LANES) + F32_LANES


def store_scratch(head_dim: int) -> tuple[int, int]:
    """(float32, bytes) of scratch that a thread of `op_store_kv` needs."""
    depth = round_up(head_dim, F32_LANES)
    return depth + F32_LANES, 4 * depth


def scratch_floats(padded_inputs: int) -> int:
    """Floats of scratch that `pack_dense` needs for rows of so many numbers."""
    return PACK_COLUMNS + padded_inputs * F32_LANES

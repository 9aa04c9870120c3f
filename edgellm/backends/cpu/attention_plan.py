"""What the attention kernels of a step are told, as small integer arrays: where tokens lie and who meets whom.

Layers with the same window see the same rows; they are a *kind*, numbered in the order of `windows_of`. For a batch of
S sequences and T tokens and K kinds:

    tokens   [T, 2 + K]  SLOT, NUMBER, then for each kind the token's row (column FIRST_ROW + kind)
    runs     [.., 4]     BEGIN .. END - 1 rows that follow each other in number too, number = row + SHIFT; TURN: -1
                         where the query meets them as `rope` left it, at its position, else the row of the table that
                         turns it on to its number
    items    [.., 5]     pieces of work, a KV head each: COUNT tokens of one sequence from row TOKEN of the batch on,
                         over runs FIRST_RUN .. LAST_RUN - 1, window and causality still to be applied; the result goes
                         to the output where PARTIAL is -1, else to the partial results from number PARTIAL on, one a
                         token
    merges   [.., 4]     TOKEN, COUNT, PARTIAL, PARTS: token t of COUNT has its parts at PARTIAL + part * COUNT + t

How work is cut depends on lengths alone, never on the number of threads. A few tokens over a long context are cut along
the context, into spans, so that one sequence keeps all threads busy; many tokens are cut into tiles of queries.

Query and key meet at numbers, which differ as positions do, except that the sinks have come `evicted` nearer: they meet
the query at its position. The angle between position and number is the same for all tokens of a sequence, `evicted`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from edgellm.backends.cpu.cache import CHUNK
from edgellm.backends.cpu.layout import round_up
from edgellm.backends.interface import Batch
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.model.rope import Rope

SLOT, NUMBER, FIRST_ROW = range(3)
BEGIN, END, SHIFT, TURN = range(4)
TOKEN, COUNT, FIRST_RUN, LAST_RUN, PARTIAL = range(5)
PARTS = 3  # of a merge: TOKEN, COUNT, PARTIAL at 2, PARTS
MERGE_PARTIAL = 2

#: Queries (tokens times heads of a KV head) of a tile.
TILE_QUERIES = 128
#: Up to so many tokens are cut along the context.
SPLIT_TOKENS = 8
#: Rows of a span, unless the context is so long that there would be more than about `_SPANS`.
_SPAN = 256
_SPANS = 64
#: Positions whose rotations are computed at a time while decoding.
ROPE_BLOCK = 64
#: Spans that are cut short by the ends of runs: sinks and the rest, each in two runs where its ring wraps.
_CUT_ENDS = 8


@dataclass(frozen=True)
class KindPlan:
    """The work of the layers of one kind.

    Attributes:
        runs, items, merges: int64 arrays, see above; of `merges` there may be none.
        tiles: how many of the items, the first ones, are tiles of many queries.
        partials: partial results needed.
    """

    runs: np.ndarray
    items: np.ndarray
    merges: np.ndarray
    tiles: int
    partials: int


@dataclass(frozen=True)
class StepPlan:
    """What one step needs to know.

    Attributes:
        tokens: int64 [T, 2 + K].
        kinds: one for each kind.
        positions, numbers: int64 [T] of the tokens.
        turns: int64 [S], how far each sequence's numbers are ahead of its positions.
    """

    tokens: np.ndarray
    kinds: tuple[KindPlan, ...]
    positions: np.ndarray
    numbers: np.ndarray
    turns: np.ndarray

    @property
    def partials(self) -> int:
        """Partial results of the kind that needs most."""
        return max(kind.partials for kind in self.kinds)


@dataclass(frozen=True)
class RopeTables:
    """Cosines and sines of a step for one way to rotate.

    Attributes:
        cos, sin: float32, rows of `half`.
        half: rotary_dim / 2, 0 without rotation.
        by_position, by_number, by_turn: element where the rows [T], [T], [S] of each begin.
    """

    cos: np.ndarray
    sin: np.ndarray
    half: int
    by_position: int
    by_number: int
    by_turn: int


@lru_cache(maxsize=16)
def windows_of(geometry: CacheGeometry) -> tuple[int | None, ...]:
    """The distinct windows, in the order of the layers: kind k of a plan is for layers with window number k."""
    return tuple(dict.fromkeys(geometry.windows))


@lru_cache(maxsize=16)
def kinds_of(geometry: CacheGeometry) -> np.ndarray:
    """The kind of each layer, int64 [layers]."""
    windows = windows_of(geometry)
    return np.array([windows.index(window) for window in geometry.windows], np.int64)


def plan_step(geometry: CacheGeometry, batch: Batch, groups: int) -> StepPlan:
    """The plan of a step.

    Args:
        geometry: of the cache.
        batch: the step; its slot states are those before it.
        groups: query heads of a KV head.
    """
    starts = batch.seq_starts.tolist()
    counts = [end - start for start, end in itertools.pairwise(starts)]
    turns = np.array([state.evicted for state in batch.states], np.int64)
    layers = [geometry.windows.index(window) for window in windows_of(geometry)]
    tokens, positions = _tokens(geometry, layers, batch.states, starts, counts)
    kinds = [_plan_kind(geometry, layer, batch.states, starts, counts, groups) for layer in layers]
    return StepPlan(tokens, tuple(kinds), positions, tokens[:, NUMBER], turns)


def _tokens(
    geometry: CacheGeometry, layers: list[int], states: Sequence[SlotState], starts: list[int], counts: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """`tokens` and `positions` of a plan."""
    if starts[-1] == len(states):  # a token each: few numbers, which NumPy would take several times as long for
        rows = [[s.slot, s.end, *[geometry.row(layer, s, s.end) for layer in layers]] for s in states]
        return np.array(rows, np.int64), np.array([s.length for s in states], np.int64)
    tokens = np.empty((starts[-1], FIRST_ROW + len(layers)), np.int64)
    positions = np.empty(starts[-1], np.int64)
    for state, start, count in zip(states, starts, counts, strict=False):
        numbers = np.arange(state.end, state.end + count)
        own = tokens[start : start + count]
        own[:, SLOT], own[:, NUMBER] = state.slot, numbers
        for kind, layer in enumerate(layers):
            own[:, FIRST_ROW + kind] = geometry.row_of(layer, state, numbers)
        positions[start : start + count] = numbers - state.evicted
    return tokens, positions


def most_partials(geometry: CacheGeometry, num_slots: int) -> int:
    """Partial results that no step needs more of, for planning memory."""
    parts = max(geometry.rows(layer) // span_of(geometry, layer) for layer in range(len(geometry.windows)))
    return num_slots * SPLIT_TOKENS * (parts + _CUT_ENDS)


def rope_tables(rope: Rope | None, plan: StepPlan) -> RopeTables:
    """The tables of one rotation for one step; without a rotation nothing turns."""
    if rope is None:
        nothing = np.zeros(1, np.float32)
        return RopeTables(nothing, nothing, 0, 0, 0, 0)
    half, tokens = rope.rotary_dim // 2, len(plan.numbers)
    if tokens == 1 and not plan.turns[0]:
        block, row = divmod(int(plan.positions[0]), ROPE_BLOCK)
        cos, sin = rope_block(rope, block)
        return RopeTables(cos[row], sin[row], half, 0, 0, 0)
    if not plan.turns.any():
        cos, sin = rope.cos_sin(plan.positions)
        return RopeTables(cos.ravel(), sin.ravel(), half, 0, 0, 0)
    cos, sin = rope.cos_sin(np.concatenate([plan.positions, plan.numbers, plan.turns]))
    return RopeTables(cos.ravel(), sin.ravel(), half, 0, tokens * half, 2 * tokens * half)


@lru_cache(maxsize=4)
def rope_block(rope: Rope, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of `ROPE_BLOCK` positions, which a sequence reaches one by one while it decodes."""
    return rope.cos_sin(np.arange(block * ROPE_BLOCK, (block + 1) * ROPE_BLOCK))


def _plan_kind(
    geometry: CacheGeometry,
    layer: int,
    states: Sequence[SlotState],
    starts: Sequence[int],
    counts: Sequence[int],
    groups: int,
) -> KindPlan:
    span = span_of(geometry, layer)
    tile = max(1, TILE_QUERIES // groups)
    runs: list[tuple[int, ...]] = []
    tiles: list[tuple[int, ...]] = []
    items: list[tuple[int, ...]] = []
    merges: list[tuple[int, ...]] = []
    partials = 0
    for index, (state, start, count) in enumerate(zip(states, starts, counts, strict=False)):
        own = _runs(geometry, layer, state, count, index)
        first = len(runs)
        if count > min(tile, SPLIT_TOKENS):
            runs += own
            # the last tile sees most: begun first, it keeps nobody waiting at the end
            begins = range(start, start + count, tile)
            tiles += [(at, min(tile, start + count - at), first, len(runs), -1) for at in reversed(begins)]
        elif sum(run[END] - run[BEGIN] for run in own) <= span:
            runs += own
            items.append((start, count, first, len(runs), -1))
        else:
            pieces = [piece for run in own for piece in _cut(run, span)]
            runs += pieces
            items += [(start, count, first + n, first + n + 1, partials + n * count) for n in range(len(pieces))]
            merges.append((start, count, partials, len(pieces)))
            partials += count * len(pieces)
    return KindPlan(_table(runs, 4), _table(tiles + items, 5), _table(merges, 4), len(tiles), partials)


def span_of(geometry: CacheGeometry, layer: int) -> int:
    """Rows of a piece where a few tokens are cut along the context."""
    return max(_SPAN, round_up(-(-geometry.rows(layer) // _SPANS), CHUNK))


def _table(rows: list[tuple[int, ...]], width: int) -> np.ndarray:
    return np.array(rows, np.int64).reshape(len(rows), width)


def _cut(run: tuple[int, ...], span: int) -> list[tuple[int, ...]]:
    """A run at whole multiples of `span`, so that chunks stay whole."""
    begin, end, *rest = run
    edges = [begin, *range(round_up(begin + 1, span), end, span), end]
    return [(a, b, *rest) for a, b in itertools.pairwise(edges)]


def _runs(geometry: CacheGeometry, layer: int, state: SlotState, count: int, index: int) -> list[tuple[int, ...]]:
    """The kept rows that a token of the step may see, the step's own included."""
    window, ring = geometry.windows[layer], geometry.ring_window(layer)
    oldest = 0 if window is None else max(state.end - window + 1, 0)
    end = state.end + count
    base, modulus = (0, geometry.rows(layer)) if ring else (state.sinks, max(geometry.context - state.sinks, 1))
    if not state.evicted:
        # nothing has left: in a layer that holds the whole context, number n is in row n
        return _pieces(oldest, end, 0, geometry.rows(layer), -1)
    sinks = _pieces(oldest, state.sinks, 0, geometry.rows(layer), -1)
    return sinks + _pieces(max(oldest, state.sinks + state.evicted), end, base, modulus, index)


def _pieces(first: int, end: int, base: int, modulus: int, turn: int) -> list[tuple[int, ...]]:
    """Runs of the numbers first .. end - 1, where number n is in row base + (n - base) % modulus."""
    runs = []
    while first < end:
        row = base + (first - base) % modulus
        count = min(end - first, base + modulus - row)
        runs.append((row, row + count, first - row, turn))
        first += count
    return runs

"""How the decode kernels share out their work: chosen on the host from the shape and the device."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.backends.cuda.layout import INPUT_ALIGNMENT, LinearLayout

#: Warps of a block.
WARPS = 16
#: Inputs times tokens that a block holds in shared memory.
CHUNK = 8192
#: What a pass costs beside its steps (the sums' way through shared memory, a barrier, outputs), in steps of a warp.
_PASS_STEPS = 2


@dataclass(frozen=True)
class GemvPlan:
    """Blocks of the grid, log2 of the warps on a tile, and steps of a chunk of x."""

    blocks: int
    split_log: int
    chunk: int


def plan_gemv(layout: LinearLayout, batch: int, multiprocessors: int) -> GemvPlan:
    """The split that leaves the longest walk of a warp shortest, one block a multiprocessor.

    More warps on a tile take fewer steps each, but a block then has fewer tiles a pass, and rows of x that do not fit
    at once are brought in anew in each pass: a pass costs `_PASS_STEPS`, and a pass with chunks their copying, too.
    """
    room = CHUNK // INPUT_ALIGNMENT // batch

    def cost(split_log: int) -> float:
        slots = WARPS >> split_log
        passes = -(-layout.row_tiles // (slots * multiprocessors))
        copied = layout.steps * batch / WARPS if layout.steps > room else 0
        return passes * (-(-layout.steps >> split_log) + _PASS_STEPS + copied)

    fits = [split_log for split_log in range(WARPS.bit_length()) if 1 << split_log <= max(1, min(room, layout.steps))]
    split_log = min(fits, key=cost)
    split = 1 << split_log
    blocks = min(-(-layout.row_tiles // (WARPS >> split_log)), multiprocessors)
    chunk = min(room >> split_log << split_log, -(-layout.steps // split) * split)
    return GemvPlan(blocks, split_log, chunk)

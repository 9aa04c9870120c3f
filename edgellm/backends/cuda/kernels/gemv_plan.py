"""How the decode kernels share out their work: chosen on the host from the shape and the device."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.backends.cuda.layout import INPUT_ALIGNMENT, LinearLayout

#: Warps of a block; below sm_80, whose kernels hold more in registers, half as many.
WARPS = 16
OLD_WARPS = 8
#: The last capability whose decode kernels are these: from 8.0 on `gemv_kernel` takes those of the tensor cores.
BELOW_AMPERE = 79
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


def plan_gemv(layout: LinearLayout, batch: int, multiprocessors: int, capability: int = 80) -> GemvPlan:
    """The split that leaves the longest walk of a warp shortest, one block a multiprocessor.

    More warps on a tile take fewer steps each, but a block then has fewer tiles a pass, and rows of x that do not fit
    at once are brought in anew in each pass: a pass costs `_PASS_STEPS`, and a pass with chunks their copying, too.
    """
    warps = WARPS if capability > BELOW_AMPERE else OLD_WARPS
    room = CHUNK // INPUT_ALIGNMENT // batch

    def cost(split_log: int) -> float:
        slots = warps >> split_log
        passes = -(-layout.row_tiles // (slots * multiprocessors))
        copied = layout.steps * batch / warps if layout.steps > room else 0
        return passes * (-(-layout.steps >> split_log) + _PASS_STEPS + copied)

    fits = [split_log for split_log in range(warps.bit_length()) if 1 << split_log <= max(1, min(room, layout.steps))]
    split_log = min(fits, key=cost)
    split = 1 << split_log
    blocks = min(-(-layout.row_tiles // (warps >> split_log)), multiprocessors)
    chunk = min(room >> split_log << split_log, -(-layout.steps // split) * split)
    return GemvPlan(blocks, split_log, chunk)


def gemv_tokens(capability: int) -> int:
    """The most tokens of one launch on a device (87 means 8.7)."""
    return 8 if capability > BELOW_AMPERE else 4


def gemv_kernel(layout: LinearLayout, batch: int, capability: int) -> str:
    """The decode kernel of a weight for 1 to `gemv_tokens` tokens on a device."""
    kind = "w16" if layout.bits == 16 else f"w{layout.bits}g{layout.group}"
    if capability > BELOW_AMPERE:
        return f"gemv_{kind}_b{4 if batch <= 4 else 8}"
    return f"gemv_{'fma' if layout.bits == 16 else 'dp4a'}_{kind}_b{1 if batch == 1 else 4}"


def gemm_kernel(layout: LinearLayout, block_tokens: int, capability: int) -> str | None:
    """The prefill kernel of a weight for 64 or 128 tokens a block; None below 7.5, where prompts go by decode kernels.

    Turing has blocks of 64 tokens alone.
    """
    if capability < 75:
        return None
    kind = "w16" if layout.bits == 16 else f"w{layout.bits}g{min(layout.group, 64)}"
    return f"gemm_{kind}_t{block_tokens}" if capability >= 80 else f"gemm_{kind}_t64_turing"

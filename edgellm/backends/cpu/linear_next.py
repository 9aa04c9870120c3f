"""Where a thread reads next, so that it asks for that while it multiplies what it has.

Memory answers late, and a processor has room for few lines that its first cache waits for, for more that its second one
does. So all lines of a block are asked for into the second cache while the block before is multiplied: within a piece
of work that is the next block, behind its last the first one of the thread's next piece, in the next linear as well,
whose weights come while the threads meet and do the small ops between.

Measured, two Zen 4 cores whose memory others used too (plain reading 40 to 46 GB/s), 16384 x 2048 in 4 bits, two
planes: lines asked for 384 bytes ahead into the first cache reached 0.67 to 0.74 of plain reading, none 0.57; into the
second 384 to 2048 bytes ahead 0.54 to 0.64, 4096 0.86, 8192 to 32768 0.83 to 0.97; into both 0.62. Of a token's time
with those 384 bytes this takes 0.85 (Qwen2.5-0.5B) and 0.94 (Llama-3.2-1B), in pairs; of its own time a fixed distance
takes 1.07 and 1.04, two blocks ahead 1.03 and 1.07. In its luckiest turns, when others left the memory alone, the near
distance did as well. Prompts, bound by arithmetic, take as long either way.
"""

from __future__ import annotations

from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.linear_columns import count_stretches, piece_begin
from edgellm.backends.cpu.work import pieces_before
from edgellm.simd import F32_LANES


@kernel
def blocks_of(op, count):
    """Blocks of a linear over `count` rows of activations, and the fewest that a thread takes at a time."""
    return (op["rows"] + F32_LANES - 1) // F32_LANES, max(1, op["piece"] // count)


@kernel
def block_begin(op, block):
    """Where a block begins in the weights."""
    stretches, _ = count_stretches(op)
    return piece_begin(op, stretches, 0, block)


@kernel
def next_begin(table, op, counts, left, number, ticket, nth):
    """Where the piece of work with that ticket begins in the weights.

    `left` blocks of `op` lie from it on, or none, and then it is looked for in the linear that follows, whose first
    piece has `number`. If it is not there either: the begin of `op`, which asks for nothing that others wait for.
    """
    if left > 0:
        blocks, _ = blocks_of(op, 1)
        return block_begin(op, blocks - left)
    if op["next"] >= 0:
        following = table[op["next"]]
        count = counts[following["over"]]
        if count > 0:
            blocks, least = blocks_of(following, count)
            left, _ = pieces_before(blocks, nth, least, number, ticket)
            if left > 0:
                return block_begin(following, blocks - left)
    return op["weight"]

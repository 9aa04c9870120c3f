"""The step record: what a step's kernels read of each sequence, in device memory, so that one graph serves every token.

A step has one record a sequence, `RECORD_WORDS` u32 side by side; record s begins at word s * RECORD_WORDS. In a decode
step sequence s owns row s of every buffer. In a prefill step there is one sequence, record 0, whose tokens are rows
0 .. COUNT - 1; their ids stand in an array of their own, u32 [COUNT], which the embedding reads with stride 1 where it
reads records with stride `RECORD_WORDS` from word `TOKEN` on.

Numbers, rows and positions are those of `edgellm/backends/slots.py`: the new tokens have the numbers END .. END +
COUNT - 1 and the positions END - EVICTED .. END - EVICTED + COUNT - 1. A record whose COUNT is 0 belongs to nobody:
kernels neither store nor attend for it, and what they leave in its rows is never read.
"""

from __future__ import annotations

#: u32 of a record: one 64-byte line.
RECORD_WORDS = 16
#: Id of the decode token.
TOKEN = 0
#: The cache slot.
SLOT = 1
#: Tokens the slot has seen before this step, evicted ones included: the number of the first new token.
END = 2
#: Tokens that have left, those numbered SINKS .. SINKS + EVICTED - 1.
EVICTED = 3
#: Tokens at the start that are never evicted.
SINKS = 4
#: New tokens: 1 in a decode step, 0 where the record belongs to nobody.
COUNT = 5
#: Of sampling on the device: float32 bits of the temperature (0 takes the most likely token), top-k (0: all), float32
#: bits of top-p, the seed's low and high half, how many tokens this sequence has drawn, Philox's counter, and how many
#: ids, from 0 on, there are to choose from.
TEMPERATURE = 6
TOP_K = 7
TOP_P = 8
SEED_LOW = 9
SEED_HIGH = 10
DRAW = 11
VOCAB = 12

#: Most sequences of a decode step, and so records of a step.
MAX_BATCH = 8

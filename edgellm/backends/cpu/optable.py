"""The op table: the fused program as rows of numbers that compiled code walks.

One record a row, alike for all kinds; a kind reads the fields it needs. Buffers are float32 in `act`: token t of a
buffer begins at element offset + t * stride. A row is a stage where `barrier` is set: its threads wait for each other
behind it. Rows without it write what none of the rows up to the next barrier reads.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from edgellm.backends.cpu.linear_tiles import LINEAR_FIELDS


class Kind(IntEnum):
    """What a row does, see `model/program.py`. The walker counts on the order: linears, attention, all others."""

    QUANTIZE = 0
    ARRANGE = 1
    LINEAR_F16 = 2
    LINEAR_INT8 = 3
    LINEAR_INT4 = 4
    LOGITS_F16 = 5
    LOGITS_INT8 = 6
    LOGITS_INT4 = 7
    LOGITS_INT2 = 8
    REFINE_INT4 = 9
    REFINE_INT2 = 10
    STORE_KV = 11
    ROPE = 12
    ATTEND = 13
    ATTEND_MERGE = 14
    EMBED = 15
    RMS_NORM = 16
    ACT_MUL = 17
    ADD = 18
    PICK_ROWS = 19
    PEAKS = 20
    SOFTCAP = 21
    BEST = 22
    TOKEN = 23


#: Codes of the activations, by the names of model configs.
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_pytorch_tanh": 2}
#: Which count of rows an op runs over: all tokens of the step, or those whose logits are wanted.
TOKENS, LOGITS = 0, 1

OP_DTYPE = np.dtype(
    [
        ("kind", np.int64),
        ("over", np.int64),  # TOKENS or LOGITS
        ("barrier", np.int64),
        ("program_op", np.int64),  # index in the program, for profiles and traces
        ("layer", np.int64),
        *LINEAR_FIELDS,
        ("other", np.int64),  # the second buffer: up, v, y; of the lm_head, its peaks; of BEST and TOKEN, the parts
        ("other_stride", np.int64),
        ("next", np.int64),  # row of the next linear, -1 where there is none
        ("piece", np.int64),  # fewest blocks of a linear that a thread takes at a time
        ("width", np.int64),
        ("code", np.int64),  # of the activation; of EMBED its `LinearKind`; of PEAKS and REFINE the least `LogitsUse`
        # that needs all blocks
        ("rope", np.int64),  # index of the rotation, -1 for none
        ("window", np.int64),  # in tokens, 0 for full attention
        ("eps", np.float32),
        ("offset", np.float32),  # added to norm weights
        ("scale", np.float32),  # of attention scores
        ("cap", np.float32),  # of softcap, 0 for none
    ]
)

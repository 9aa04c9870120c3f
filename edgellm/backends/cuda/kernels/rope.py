"""Rotary position embedding of the queries (RoFormer, arXiv:2104.09864), rotate-half pairing.

    positioned[j]        = x[j] cos - x[j + half] sin        at the token's position, number - evicted
    positioned[j + half] = x[j + half] cos + x[j] sin        j < half = rotary_dim / 2; the rest of a head passes

`numbered` is the same at the token's number: what meets the keys behind the sinks once something was evicted (see
`cache_layout.py`). It is written only then. With `norm` the head first goes through RMSNorm with `weight` [head_dim].

Grid: heads / 4 rounded up, rows; a warp has a head. Bytes: 8 an element. Row r belongs to record r where `step` is 1 (a
decode step), else it is token r of record 0.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.cache_layout import MAX_HEAD_DIM
from edgellm.backends.cuda.kernels.declare import kernel
from edgellm.backends.cuda.kernels.heads import normalise_head, take_head, turn_head
from edgellm.backends.cuda.kernels.record import COUNT, END, EVICTED, RECORD_WORDS
from edgellm.backends.cuda.ptx import (
    cuda,
    f32,
    griddep_launch,
    griddep_wait,
    u32,
)

_WARPS = 4
_STAGE = _WARPS * MAX_HEAD_DIM
_DEPTH = u32(MAX_HEAD_DIM)


@kernel(
    "rope",
    (
        ("x", "f32*"),
        ("positioned", "f32*"),
        ("numbered", "f32*"),
        ("turns", "u64*"),
        ("weight", "f32*"),
        ("record", "u32*"),
        ("stride", "u32"),
        ("target_stride", "u32"),
        ("heads", "u32"),
        ("head_dim", "u32"),
        ("half", "u32"),
        ("step", "u32"),
        ("norm", "u32"),
        ("eps", "f32"),
        ("offset", "f32"),
    ),
    threads=32 * _WARPS,
    lowest=70,
    registers=40,
)
def rope(
    x,
    positioned,
    numbered,
    turns,
    weight,
    record,
    stride,
    target_stride,
    heads,
    head_dim,
    half,
    step,
    norm,
    eps,
    offset,
):
    """Turn `heads` heads of each row of x [rows, stride] into `positioned`, `numbered` [rows, target_stride].

    `positioned` may be x. `half` 0 turns nothing.
    """
    griddep_wait()
    griddep_launch()
    stage = cuda.shared.array(_STAGE, f32, alignment=16)
    warp = u32(u32(cuda.threadIdx.x) >> u32(5))
    lane = u32(u32(cuda.threadIdx.x) & u32(31))
    head = u32(u32(cuda.blockIdx.x) * u32(_WARPS) + warp)
    row = u32(cuda.blockIdx.y)
    own = u32(row * step * u32(RECORD_WORDS))
    index = u32(row - row * step)
    if head >= heads or index >= record[own + u32(COUNT)]:
        return
    number = u32(record[own + u32(END)] + index)
    evicted = record[own + u32(EVICTED)]
    at = u32(warp * _DEPTH)
    take_head(stage, at, x, u32(row * stride + head * head_dim), head_dim, head_dim, lane)
    if norm != u32(0):
        normalise_head(stage, at, weight, head_dim, eps, offset, lane)
    target = u32(row * target_stride + head * head_dim)
    if evicted != u32(0):
        turn_head(numbered, target, stage, at, turns, half, number, head_dim, lane)
    turn_head(positioned, target, stage, at, turns, half, u32(number - evicted), head_dim, lane)

"""Around the lm_head: the rows whose logits are wanted, and what the model's config does to logits.

gather_rows      out[r] = x[rows[r]]
finish_logits    logits = softcap(logits * multiplier), in place
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.declare import kernel
from edgellm.backends.cuda.ptx import (
    cuda,
    f32,
    griddep_launch,
    griddep_wait,
    rcp,
    tanh,
    u32,
    u64,
)

_THREADS = 256
_BLOCK = u32(_THREADS)


@kernel(
    "gather_rows",
    (("x", "f32*"), ("rows", "u32*"), ("out", "f32*"), ("stride", "u32"), ("width", "u32")),
    threads=_THREADS,
    lowest=70,
    registers=32,
)
def gather_rows(x, rows, out, stride, width):
    """x [.., stride] to out [rows, width]. Grid: width / 256 rounded up, rows."""
    griddep_wait()
    griddep_launch()
    column = u32(u32(cuda.blockIdx.x) * _BLOCK + u32(cuda.threadIdx.x))
    row = u32(cuda.blockIdx.y)
    if column < width:
        out[u64(row) * u64(width) + u64(column)] = x[u64(rows[row]) * u64(stride) + u64(column)]


@kernel(
    "finish_logits",
    (("logits", "f32*"), ("count", "u32"), ("multiplier", "f32"), ("softcap", "f32")),
    threads=_THREADS,
    lowest=70,
    registers=32,
)
def finish_logits(logits, count, multiplier, softcap):
    """`count` logits; `softcap` 0: none. Grid: count / 256 rounded up."""
    griddep_wait()
    griddep_launch()
    i = u32(u32(cuda.blockIdx.x) * _BLOCK + u32(cuda.threadIdx.x))
    if i < count:
        logit = logits[i] * multiplier
        logits[i] = softcap * tanh(logit * rcp(softcap)) if softcap != f32(0.0) else logit

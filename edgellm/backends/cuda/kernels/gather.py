"""Activations of a matrix whose columns are permuted (GPTQ's act-order), for the prefill GEMM.

    gather_float16    out[t, j] = x[t, order[j]], float16 with a power of two a row (`rows.py`)

The decode kernels gather for themselves.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.declare import kernel
from edgellm.backends.cuda.kernels.record import COUNT
from edgellm.backends.cuda.kernels.rows import PLAIN, ROW_THREADS, half_row
from edgellm.backends.cuda.ptx import cuda, device, f32, griddep_launch, griddep_wait, u32

_BLOCK_WARPS = ROW_THREADS // 32
_NONE = f32(0.0)  # numbers that a row does not need


@device
def gathered(x, order, at, i, p, q):
    """An element of the row in its new order."""
    return x[u32(at + order[i])]


_largest, _write = PLAIN.largest, half_row(gathered).write


@kernel(
    "gather_float16",
    (
        ("x", "f32*"),
        ("order", "u32*"),
        ("out", "u16*"),
        ("scales", "f32*"),
        ("record", "u32*"),
        ("stride", "u32"),
        ("width", "u32"),
        ("step", "u32"),
    ),
    threads=ROW_THREADS,
    lowest=70,
)
def gather_float16(x, order, out, scales, record, stride, width, step):
    """x [rows, stride] to out, float16 [rows, width], times scales [rows]. Grid: rows."""
    griddep_wait()
    griddep_launch()
    stage = cuda.shared.array(_BLOCK_WARPS, f32, alignment=16)
    row = u32(cuda.blockIdx.x)
    if step == u32(0) and row >= record[u32(COUNT)]:
        return
    at = u32(row * stride)
    most = _largest(x, x, at, _NONE, _NONE, width, stage)  # in the order of memory
    _write(out, scales, row, x, order, at, _NONE, _NONE, width, most)

"""Activations of a matrix whose columns are permuted (GPTQ's act-order), for the prefill GEMM.

    gather_float16    out[t, j] = x[t, order[j]], float16 with a power of two a row (`rows.py`)

The decode kernels gather for themselves.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.declare import kernel
from edgellm.backends.cuda.kernels.record import COUNT
from edgellm.backends.cuda.kernels.rows import ROW_THREADS, block_max, half_scale
from edgellm.backends.cuda.ptx import cuda, f32, f32_to_f16, fabs, fmax, u32

_BLOCK = u32(ROW_THREADS)
_BLOCK_WARPS = ROW_THREADS // 32


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
    stage = cuda.shared.array(_BLOCK_WARPS, f32, alignment=16)
    row = u32(cuda.blockIdx.x)
    if step == u32(0) and row >= record[u32(COUNT)]:
        return
    source, target = u32(row * stride), u32(row * width)
    largest = f32(0.0)
    i = u32(cuda.threadIdx.x)
    while i < width:
        largest = fmax(largest, fabs(x[u32(source + i)]))
        i = u32(i + _BLOCK)
    multiplier, scale = half_scale(block_max(largest, stage))
    i = u32(cuda.threadIdx.x)
    while i < width:
        out[u32(target + i)] = f32_to_f16(x[u32(source + order[i])] * multiplier)
        i = u32(i + _BLOCK)
    if u32(cuda.threadIdx.x) == u32(0):
        scales[row] = scale

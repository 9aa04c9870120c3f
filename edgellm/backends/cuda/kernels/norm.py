"""RMSNorm (arXiv:1910.07467): out = x / sqrt(mean(x^2) + eps) * (offset + weight).

    rms_norm          over each row, to float32; out may be x
    rms_norm_float16  over each row, to float16 with a power of two a row (`rows.py`), for the prefill GEMM
    rms_norm_heads    over each run of `head_dim` elements (qk_norm), to float32; out may be x

Sums are float32, in an order that depends on nothing but the width. Grid: rows, of `rms_norm_heads` heads / 4 rounded
up, rows. A row is read twice, the second time from the L2 cache. Rows from the record's COUNT on are left alone where
`step` is 0 (a prefill step of record 0); where it is 1, every row is a sequence's.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.cache_layout import MAX_HEAD_DIM
from edgellm.backends.cuda.kernels.declare import kernel
from edgellm.backends.cuda.kernels.heads import normalise_head, take_head
from edgellm.backends.cuda.kernels.record import COUNT
from edgellm.backends.cuda.kernels.rows import ROW_THREADS, block_max, block_sum, half_row
from edgellm.backends.cuda.ptx import (
    cuda,
    device,
    f32,
    f32_of_u32,
    fabs,
    fma,
    fmax,
    griddep_launch,
    griddep_wait,
    rcp,
    rsqrt,
    u32,
)

_WARPS = 4
_STAGE = _WARPS * MAX_HEAD_DIM
_DEPTH = u32(MAX_HEAD_DIM)
_BLOCK = u32(ROW_THREADS)
_BLOCK_WARPS = ROW_THREADS // 32
_ROWS = (("record", "u32*"), ("width", "u32"), ("step", "u32"), ("eps", "f32"), ("offset", "f32"))


@device
def normed(x, weight, at, i, factor, offset):
    """An element of a row whose inverse root mean square is `factor`."""
    return x[u32(at + i)] * factor * (offset + weight[i])


write_half = half_row(normed).write


@kernel(
    "rms_norm",
    (("x", "f32*"), ("weight", "f32*"), ("out", "f32*"), *_ROWS),
    threads=ROW_THREADS,
    lowest=70,
    registers=48,
)
def rms_norm(x, weight, out, record, width, step, eps, offset):
    """x, out [rows, width], weight [width]; a block has a row."""
    griddep_wait()
    griddep_launch()
    stage = cuda.shared.array(_BLOCK_WARPS, f32, alignment=16)
    row = u32(cuda.blockIdx.x)
    if step == u32(0) and row >= record[u32(COUNT)]:
        return
    at = u32(row * width)
    total = f32(0.0)
    i = u32(cuda.threadIdx.x)
    while i < width:
        total = fma(x[at + i], x[at + i], total)
        i = u32(i + _BLOCK)
    factor = rsqrt(fma(block_sum(total, stage), rcp(f32_of_u32(width)), eps))
    i = u32(cuda.threadIdx.x)
    while i < width:
        out[at + i] = normed(x, weight, at, i, factor, offset)
        i = u32(i + _BLOCK)


@kernel(
    "rms_norm_float16",
    (("x", "f32*"), ("weight", "f32*"), ("out", "u16*"), ("scales", "f32*"), *_ROWS),
    threads=ROW_THREADS,
    lowest=70,
    registers=48,
)
def rms_norm_float16(x, weight, out, scales, record, width, step, eps, offset):
    """x [rows, width] to out, float16 [rows, width], times scales [rows]."""
    griddep_wait()
    griddep_launch()
    stage = cuda.shared.array(_BLOCK_WARPS, f32, alignment=16)
    row = u32(cuda.blockIdx.x)
    if step == u32(0) and row >= record[u32(COUNT)]:
        return
    at = u32(row * width)
    total = f32(0.0)
    largest = f32(0.0)
    i = u32(cuda.threadIdx.x)
    while i < width:
        value = x[at + i]
        total = fma(value, value, total)
        largest = fmax(largest, fabs(value * (offset + weight[i])))
        i = u32(i + _BLOCK)
    factor = rsqrt(fma(block_sum(total, stage), rcp(f32_of_u32(width)), eps))
    write_half(out, scales, row, x, weight, at, factor, offset, width, block_max(largest, stage) * factor)


@kernel(
    "rms_norm_heads",
    (
        ("x", "f32*"),
        ("weight", "f32*"),
        ("out", "f32*"),
        ("record", "u32*"),
        ("stride", "u32"),
        ("heads", "u32"),
        ("head_dim", "u32"),
        ("step", "u32"),
        ("eps", "f32"),
        ("offset", "f32"),
    ),
    threads=32 * _WARPS,
    lowest=70,
    registers=48,
)
def rms_norm_heads(x, weight, out, record, stride, heads, head_dim, step, eps, offset):
    """Each of `heads` heads of x, out [rows, stride], weight [head_dim]; a warp has a head."""
    griddep_wait()
    griddep_launch()
    stage = cuda.shared.array(_STAGE, f32, alignment=16)
    lane = u32(u32(cuda.threadIdx.x) & u32(31))
    warp = u32(u32(cuda.threadIdx.x) >> u32(5))
    head = u32(u32(cuda.blockIdx.x) * u32(_WARPS) + warp)
    row = u32(cuda.blockIdx.y)
    if head >= heads or (step == u32(0) and row >= record[u32(COUNT)]):
        return
    at, source = u32(warp * _DEPTH), u32(row * stride + head * head_dim)
    take_head(stage, at, x, source, head_dim, head_dim, lane)
    normalise_head(stage, at, weight, head_dim, eps, offset, lane)
    e = lane
    while e < head_dim:
        out[source + e] = stage[at + e]
        e = u32(e + u32(32))

"""The MLP's activations and the residual sum, where no matmul takes them along.

act_mul_<act>          out = act(gate) * up, float32 (GLU variants, arXiv:2002.05202)
act_mul_<act>_float16  the same to float16 with a power of two a row (`rows.py`), for the prefill GEMM
add                    x = x + multiplier * y
to_float16             x to float16 with a power of two a row
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.declare import Kernel, kernel
from edgellm.backends.cuda.kernels.record import COUNT
from edgellm.backends.cuda.kernels.rows import PLAIN, ROW_THREADS, half_row
from edgellm.backends.cuda.ptx import (
    cuda,
    device,
    erf,
    f32,
    fma,
    griddep_launch,
    griddep_wait,
    sigmoid,
    tanh,
    u32,
)

_BLOCK = u32(ROW_THREADS)
_BLOCK_WARPS = ROW_THREADS // 32
_NONE = f32(0.0)  # numbers that a row does not need
_largest, _write = PLAIN
_ROWS = (("record", "u32*"), ("stride", "u32"), ("width", "u32"), ("step", "u32"))


@device
def silu(x):
    """x sigmoid(x)."""
    return x * sigmoid(x)


@device
def gelu(x):
    """x times the normal distribution function of x."""
    return f32(0.5) * x * (f32(1.0) + erf(x * f32(0.7071067811865476)))


@device
def gelu_pytorch_tanh(x):
    """`gelu` by way of tanh."""
    return f32(0.5) * x * (f32(1.0) + tanh(f32(0.7978845608028654) * fma(f32(0.044715) * x, x * x, x)))


#: By `hidden_act`.
ACTIVATIONS = {"silu": silu, "gelu": gelu, "gelu_pytorch_tanh": gelu_pytorch_tanh}


def _declare(name: str) -> tuple[Kernel, Kernel]:
    act = ACTIVATIONS[name]

    @device
    def product(gate, up, at, i, p, q):
        return act(gate[u32(at + i)]) * up[u32(at + i)]

    largest, write = half_row(product)

    @kernel(
        f"act_mul_{name}",
        (("gate", "f32*"), ("up", "f32*"), ("out", "f32*"), *_ROWS),
        threads=ROW_THREADS,
        lowest=70,
        registers=48,
    )
    def act_mul(gate, up, out, record, stride, width, step):
        """gate, up [rows, stride] to out [rows, width]. Grid: width / 256 rounded up, rows."""
        griddep_wait()
        griddep_launch()
        column = u32(u32(cuda.blockIdx.x) * _BLOCK + u32(cuda.threadIdx.x))
        row = u32(cuda.blockIdx.y)
        if column >= width or (step == u32(0) and row >= record[u32(COUNT)]):
            return
        at = u32(row * stride + column)
        out[u32(row * width + column)] = act(gate[at]) * up[at]

    @kernel(
        f"act_mul_{name}_float16",
        (("gate", "f32*"), ("up", "f32*"), ("out", "u16*"), ("scales", "f32*"), *_ROWS),
        threads=ROW_THREADS,
        lowest=70,
        registers=48,
    )
    def act_mul_float16(gate, up, out, scales, record, stride, width, step):
        """gate, up [rows, stride] to out, float16 [rows, width], times scales [rows]. Grid: rows."""
        griddep_wait()
        griddep_launch()
        stage = cuda.shared.array(_BLOCK_WARPS, f32, alignment=16)
        row = u32(cuda.blockIdx.x)
        if step == u32(0) and row >= record[u32(COUNT)]:
            return
        at = u32(row * stride)
        most = largest(gate, up, at, _NONE, _NONE, width, stage)
        write(out, scales, row, gate, up, at, _NONE, _NONE, width, most)

    return act_mul, act_mul_float16


KERNELS = {name: _declare(name) for name in ACTIVATIONS}


@kernel(
    "add", (("x", "f32*"), ("y", "f32*"), ("count", "u32"), ("multiplier", "f32")), threads=256, lowest=70, registers=32
)
def add(x, y, count, multiplier):
    """x = x + multiplier * y, both of `count` elements. Grid: count / 256 rounded up."""
    griddep_wait()
    griddep_launch()
    i = u32(u32(cuda.blockIdx.x) * u32(256) + u32(cuda.threadIdx.x))
    if i < count:
        x[i] = fma(multiplier, y[i], x[i])


@kernel(
    "to_float16",
    (("x", "f32*"), ("out", "u16*"), ("scales", "f32*"), *_ROWS),
    threads=ROW_THREADS,
    lowest=70,
    registers=48,
)
def to_float16(x, out, scales, record, stride, width, step):
    """x [rows, stride] to out, float16 [rows, width], times scales [rows]. Grid: rows."""
    griddep_wait()
    griddep_launch()
    stage = cuda.shared.array(_BLOCK_WARPS, f32, alignment=16)
    row = u32(cuda.blockIdx.x)
    if step == u32(0) and row >= record[u32(COUNT)]:
        return
    at = u32(row * stride)
    most = _largest(x, x, at, _NONE, _NONE, width, stage)
    _write(out, scales, row, x, x, at, _NONE, _NONE, width, most)

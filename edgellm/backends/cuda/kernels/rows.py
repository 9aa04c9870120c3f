"""What the kernels share that give a row of a buffer to a block: sums over the block, and rows of float16 for the GEMM.

The prefill GEMM reads its activations as float16 divided by a power of two, one float32 a row, chosen so that the row's
largest value lands in [2^14, 2^15): nothing overflows and little is subnormal, whatever the size of the row; being a
power of two it rounds nothing. NaN and infinity stay what they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from edgellm.backends.cuda.ptx import (
    bits_of_f32,
    cuda,
    device,
    f32,
    f32_of_bits,
    f32_to_f16,
    fabs,
    fmax,
    u32,
    warp_max,
    warp_sum,
)

#: Threads of a block that has a row.
ROW_THREADS = 256
_WARPS = ROW_THREADS // 32
_LOWEST, _HIGHEST = u32(16), u32(254)  # biased exponents that leave both scale and multiplier normal


@device
def block_sum(value, stage):
    """The sum over the block, in every thread, in an order that never changes; `stage` is float32 [warps], shared."""
    value = warp_sum(value)
    cuda.syncthreads()
    stage[u32(cuda.threadIdx.x) >> u32(5)] = value
    cuda.syncthreads()
    total = f32(0.0)
    for warp in range(u32(_WARPS)):
        total += stage[warp]
    return total


@device
def block_max(value, stage):
    """The largest of the block, in every thread; `stage` as `block_sum`'s."""
    value = warp_max(value)
    cuda.syncthreads()
    stage[u32(cuda.threadIdx.x) >> u32(5)] = value
    cuda.syncthreads()
    largest = f32(0.0)
    for warp in range(u32(_WARPS)):
        largest = fmax(largest, stage[warp])
    return largest


@device
def half_scale(largest):
    """(multiplier, scale), powers of two and each other's inverse: x * multiplier fits float16 if |x| <= `largest`."""
    exponent = u32(bits_of_f32(largest) >> u32(23))
    exponent = exponent if exponent > _LOWEST else _LOWEST
    exponent = exponent if exponent < _HIGHEST else _HIGHEST
    return f32_of_bits(u32(u32(268) - exponent) << u32(23)), f32_of_bits(u32(exponent - u32(14)) << u32(23))


class HalfRow(NamedTuple):
    """Device functions of a block that has a row: `largest` gives the largest magnitude, in every thread, `write` the
    row as float16 and its scale."""

    largest: Any
    write: Any


def half_row(value: Any) -> HalfRow:
    """The row whose element i is `value(a, b, at, i, p, q)`, of arrays a and b, the row's begin and two numbers."""

    @device
    def largest(a, b, at, p, q, width, stage):
        most = f32(0.0)
        i = u32(cuda.threadIdx.x)
        while i < width:
            most = fmax(most, fabs(value(a, b, at, i, p, q)))
            i = u32(i + u32(ROW_THREADS))
        return block_max(most, stage)

    @device
    def write(out, scales, row, a, b, at, p, q, width, most):
        multiplier, scale = half_scale(most)
        target = u32(row * width)
        i = u32(cuda.threadIdx.x)
        while i < width:
            out[u32(target + i)] = f32_to_f16(value(a, b, at, i, p, q) * multiplier)
            i = u32(i + u32(ROW_THREADS))
        if u32(cuda.threadIdx.x) == u32(0):
            scales[row] = scale

    return HalfRow(largest, write)


@device
def element(x, unused, at, i, p, q):
    """The number itself."""
    return x[u32(at + i)]


PLAIN = half_row(element)

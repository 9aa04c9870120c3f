"""The end of a matmul: what becomes of a sum. See `linear_flags.py` for the formulas."""

from __future__ import annotations

from edgellm.backends.cuda.kernels.linear_flags import (
    ACT_ANY,
    ACT_GELU,
    ACT_SILU,
    BIAS,
    RESIDUAL,
    SOFTCAP,
)
from edgellm.backends.cuda.ptx import device, erf, f32, fma, rcp, sigmoid, tanh, u32

_SQRT_HALF = f32(0.7071067811865476)
_GELU_SCALE = f32(2 * 0.7978845608028654)  # 2 sqrt(2 / pi): gelu_pytorch_tanh is x sigmoid(2 inner)
_GELU_CUBE = f32(0.044715)


@device
def activate(gate, flags):
    """act(gate)."""
    if flags & u32(ACT_SILU):
        return gate * sigmoid(gate)
    if flags & u32(ACT_GELU):
        return f32(0.5) * gate * (f32(1.0) + erf(gate * _SQRT_HALF))
    return gate * sigmoid(_GELU_SCALE * fma(_GELU_CUBE * gate * gate, gate, gate))


@device
def finish(out, y, up, bias, tile, row, token, rows, out_stride, flags, multiplier, softcap):
    """One output from the sum of slot `row` of a tile, and of a paired weight from `up`, that of slot row + 8.

    Args:
        y, up: with their factor, without their bias, which lies in the order of slots.
        rows: outputs of the weight; those of a pair count once.
    """
    slot = u32(tile * u32(16) + row)
    if flags & u32(BIAS):
        y += bias[slot]
    if flags & u32(ACT_ANY):
        if flags & u32(BIAS) and row < u32(8):
            up += bias[u32(slot + u32(8))]
        slot = u32(tile * u32(8) + row) if row < u32(8) else rows
        y = activate(y, flags) * up
    if slot < rows:
        y *= multiplier
        at = u32(token * out_stride + slot)
        if flags & u32(RESIDUAL):
            y += out[at]
        if flags & u32(SOFTCAP):
            y = softcap * tanh(y * rcp(softcap))
        out[at] = y

"""Element by element: the activation of a gated MLP (arXiv:2002.05202), the residual sum, the cap on logits.

    act_mul   out = act(gate) * up
    add       x = x + multiplier * y
    softcap   x = cap * tanh(x * multiplier / cap), or x * multiplier without a cap

Buffers are rows of a float32 array, at element `_offset` + token * `_stride`. Work is divided into blocks of columns,
so that one token's row serves all threads.
"""

from __future__ import annotations

import math

from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.optable import ACTIVATIONS
from edgellm.backends.cpu.work import share
from edgellm.simd import (
    F32_LANES,
    exp,
    fma,
    load_f32,
    load_n_f32,
    select,
    sigmoid,
    splat_f32,
    store,
    store_n,
    tanh,
    zero_f32,
)

_SILU, _GELU = ACTIVATIONS["silu"], ACTIVATIONS["gelu"]
#: Columns of a block: whole vectors, some hundred nanoseconds of work.
_BLOCK = 256
_ROOT_HALF = math.sqrt(0.5)
_ROOT_2_OVER_PI = math.sqrt(2 / math.pi)
_GELU_CUBE = 0.044715
#: erf by Abramowitz and Stegun 7.1.26, off by 1.5e-7 at most.
_ERF_P = 0.3275911
_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


@kernel
def _erf(x):
    magnitude = abs(x)
    t = splat_f32(1.0) / fma(splat_f32(_ERF_P), magnitude, splat_f32(1.0))
    p = fma(splat_f32(_ERF[4]), t, splat_f32(_ERF[3]))
    p = fma(p, t, splat_f32(_ERF[2]))
    p = fma(p, t, splat_f32(_ERF[1]))
    p = fma(p, t, splat_f32(_ERF[0]))
    y = splat_f32(1.0) - p * t * exp(-(x * x))
    return select(x < zero_f32(), -y, y)


@kernel
def _activate(x, code):
    if code == _SILU:
        return x * sigmoid(x)
    half = splat_f32(0.5) * x
    if code == _GELU:
        return half * (splat_f32(1.0) + _erf(x * splat_f32(_ROOT_HALF)))
    inner = splat_f32(_ROOT_2_OVER_PI) * fma(splat_f32(_GELU_CUBE) * x * x, x, x)
    return half * (splat_f32(1.0) + tanh(inner))


@kernel(shared=True)
def op_act_mul(
    act, out_offset, out_stride, gate_offset, gate_stride, up_offset, up_stride, code, tokens, width, ith, nth
):
    """out = ACTIVATIONS[code](gate) * up over `tokens` rows of `width`; out may be gate or up."""
    blocks = (width + _BLOCK - 1) // _BLOCK
    first, last = share(ith, nth, tokens * blocks)
    for unit in range(first, last):
        token, start = unit // blocks, unit % blocks * _BLOCK
        end = min(start + _BLOCK, width)
        whole = start + (end - start) // F32_LANES * F32_LANES
        out, gate, up = (
            out_offset + token * out_stride,
            gate_offset + token * gate_stride,
            up_offset + token * up_stride,
        )
        for i in range(start, whole, F32_LANES):
            store(act, out + i, _activate(load_f32(act, gate + i), code) * load_f32(act, up + i))
        if whole < end:
            rest = end - whole
            value = _activate(load_n_f32(act, gate + whole, rest), code) * load_n_f32(act, up + whole, rest)
            store_n(act, out + whole, value, rest)


@kernel(shared=True)
def op_add(act, x_offset, x_stride, y_offset, y_stride, multiplier, tokens, width, ith, nth):
    """x = x + multiplier * y over `tokens` rows of `width`."""
    blocks = (width + _BLOCK - 1) // _BLOCK
    first, last = share(ith, nth, tokens * blocks)
    factor = splat_f32(multiplier)
    for unit in range(first, last):
        token, start = unit // blocks, unit % blocks * _BLOCK
        end = min(start + _BLOCK, width)
        whole = start + (end - start) // F32_LANES * F32_LANES
        x, y = x_offset + token * x_stride, y_offset + token * y_stride
        for i in range(start, whole, F32_LANES):
            store(act, x + i, fma(factor, load_f32(act, y + i), load_f32(act, x + i)))
        if whole < end:
            rest = end - whole
            value = fma(factor, load_n_f32(act, y + whole, rest), load_n_f32(act, x + whole, rest))
            store_n(act, x + whole, value, rest)


@kernel
def cap_scores(x, cap):
    """cap * tanh(x / cap), x as it is where cap is 0."""
    if cap == 0.0:
        return x
    return splat_f32(cap) * tanh(x / splat_f32(cap))


@kernel(shared=True)
def op_softcap(x, offset, stride, multiplier, cap, rows, width, ith, nth):
    """x = softcap(x * multiplier) in place over `rows` rows of `width`; `cap` 0 is no cap."""
    blocks = (width + _BLOCK - 1) // _BLOCK
    first, last = share(ith, nth, rows * blocks)
    factor = splat_f32(multiplier)
    for unit in range(first, last):
        row, start = unit // blocks, unit % blocks * _BLOCK
        end = min(start + _BLOCK, width)
        whole = start + (end - start) // F32_LANES * F32_LANES
        at = offset + row * stride
        for i in range(start, whole, F32_LANES):
            store(x, at + i, cap_scores(load_f32(x, at + i) * factor, cap))
        if whole < end:
            rest = end - whole
            store_n(x, at + whole, cap_scores(load_n_f32(x, at + whole, rest) * factor, cap), rest)

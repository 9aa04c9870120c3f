"""What a matmul kernel does around the product: bits of its `flags`, shared by the kernels and by who launches them.

y = factor * (W v) + bias,      v = x, or x[order] where the codes' columns are permuted (ORDER)

NORM        v = (offset + norm) * x, and y is divided by sqrt(mean(x^2) + eps) before the bias
ACT_*       of a paired weight: y = act(gate) * up
RESIDUAL    out = out + multiplier * y; without it out = multiplier * y
SOFTCAP     out = softcap * tanh(out / softcap)
OWN_ZEROS   groups have their own zero points; else `zero` is everyone's
VECTORS     rows of x (and `norm`) can be read 16 bytes at a time: the row length and the distance of rows are
            multiples of 4, and there is no permutation
"""

from __future__ import annotations

NORM = 1
ORDER = 2
OWN_ZEROS = 4
BIAS = 8
RESIDUAL = 16
SOFTCAP = 32
VECTORS = 64
ACT_SILU = 256
ACT_GELU = 512
ACT_GELU_TANH = 1024
ACT_ANY = ACT_SILU | ACT_GELU | ACT_GELU_TANH

#: Flag of an activation by its name in `config.json`.
ACTIVATIONS = {"silu": ACT_SILU, "gelu": ACT_GELU, "gelu_pytorch_tanh": ACT_GELU_TANH}

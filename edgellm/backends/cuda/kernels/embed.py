"""Rows of a packed weight as activations: the embedding, which may be a tied lm_head in the very same bytes.

    out[t, k] = factor * scale * (code - zero) of row token_ids[t]        (16 bits: factor * number)

A thread has four inputs of a row: the lane g = row % 8 of its tile, quarter t, block b. Every 16 bytes of a tile give a
row 8, 4 or 2 inputs, so some 4 KB are touched for 1,000 inputs, and nothing is stored twice.

Grid: padded inputs / 4 / 256 rounded up, tokens. A token id is read at token_ids[token * id_stride]: of step records
their `TOKEN` with stride `RECORD_WORDS`, of a prompt its ids with stride 1. Ids from `rows` on read the last row.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.declare import kernel
from edgellm.backends.cuda.kernels.linear_flags import OWN_ZEROS
from edgellm.backends.cuda.ptx import (
    cuda,
    device,
    f32,
    f32_of_u32,
    funnel_left,
    griddep_launch,
    griddep_wait,
    ldg_u16,
    ldg_u32,
    u32,
    unpack_f16x2,
)

THREADS = 256


@device
def chosen_half(pair, upper):
    """The low or the upper float16 of a pair."""
    low, high = unpack_f16x2(pair)
    return high if upper else low


def declare_embed(bits):
    """Declare the kernel for tables of `bits`."""

    @kernel(
        f"embed_w{bits}",
        (
            ("tiles", "u32*"),
            ("scales", "u32*"),
            ("zeros", "u32*" if bits == 8 else "u16*"),
            ("token_ids", "u32*"),
            ("out", "f32*"),
            ("rows", "u32"),
            ("inputs", "u32"),
            ("steps", "u32"),
            ("group_log", "u32"),
            ("id_stride", "u32"),
            ("out_stride", "u32"),
            ("zero", "u32"),
            ("flags", "u32"),
            ("factor", "f32"),  # times the embedding's multiplier
        ),
        threads=THREADS,
        lowest=70,
    )
    def embed(
        tiles, scales, zeros, token_ids, out, rows, inputs, steps, group_log, id_stride, out_stride, zero, flags, factor
    ):  # fmt: skip
        griddep_wait()
        griddep_launch()
        quad = u32(u32(cuda.blockIdx.x) * u32(THREADS) + u32(cuda.threadIdx.x))
        token = u32(cuda.blockIdx.y)
        if quad >= u32(steps * u32(32)):
            return
        row = token_ids[u32(token * id_stride)]
        row = row if row < rows else u32(rows - u32(1))
        upper = u32((row >> u32(3)) & u32(1))
        lane = u32((row & u32(7)) * u32(4) + (quad & u32(3)))
        block = u32((quad >> u32(2)) & u32(3))
        tile = u32((row >> u32(4)) * steps * u32(2) + (quad >> u32(4)))
        k = u32((quad >> u32(2)) * u32(16) + (quad & u32(3)) * u32(2))
        v = cuda.local.array(4, f32)
        if bits == 16:
            at = u32((tile * u32(4) + block) * u32(128) + lane * u32(4) + upper)
            v[0], v[1] = unpack_f16x2(ldg_u32(tiles, at))
            v[2], v[3] = unpack_f16x2(ldg_u32(tiles, u32(at + u32(2))))
            for i in range(u32(4)):
                v[i] *= factor
        else:
            if bits == 4:
                word = ldg_u32(tiles, u32(tile * u32(128) + lane * u32(4) + block))
                word = u32(funnel_left(word, word, u32(29)) >> (upper << u32(2))) & u32(0x0F0F0F0F)
            else:
                load = u32(tile * u32(2) + (block >> u32(1)))
                word = ldg_u32(tiles, u32(load * u32(128) + lane * u32(4) + (block & u32(1)) * u32(2) + upper))
            pair = u32(
                ((row >> u32(4)) * (u32(steps * u32(128)) >> group_log) + (k >> group_log)) * u32(8) + (row & u32(7))
            )
            scale = chosen_half(ldg_u32(scales, pair), upper) * factor
            own = zero
            if flags & u32(OWN_ZEROS):
                if bits == 4:
                    own = u32(u32(ldg_u16(zeros, pair)) >> (upper << u32(3))) & u32(0xFF)
                else:
                    own = u32(ldg_u32(zeros, pair) >> (upper << u32(4))) & u32(0xFFFF)
            middle = f32_of_u32(own)
            v[0] = scale * (f32_of_u32(u32(word & u32(0xFF))) - middle)
            v[2] = scale * (f32_of_u32(u32((word >> u32(8)) & u32(0xFF))) - middle)
            v[1] = scale * (f32_of_u32(u32((word >> u32(16)) & u32(0xFF))) - middle)
            v[3] = scale * (f32_of_u32(u32(word >> u32(24))) - middle)
        at = u32(token * out_stride + k)
        if k < inputs:
            out[at] = v[0]
        if k + u32(1) < inputs:
            out[u32(at + u32(1))] = v[1]
        if k + u32(8) < inputs:
            out[u32(at + u32(8))] = v[2]
        if k + u32(9) < inputs:
            out[u32(at + u32(9))] = v[3]

    return embed


for _bits in (4, 8, 16):
    declare_embed(_bits)

"""Dense weights to codes of 8 or 4 bits while they are packed: the embedding and an unquantized lm_head.

Round to nearest, symmetric around the middle code (`packing.quantize` is the definition): with m = 127 or 7,

    scale = float16(max |w| / (factor m)),  code = rint(w / (scale factor)) + m + 1, at most 2 m + 1

A warp has a group of a tile's 16 rows: each lane the inputs of two rows that will be its operands, so the largest of
a row is a maximum over four lanes, and words, scales and all are written once. Numbers are read twice, the second time
from a cache. Rows come in pieces that begin with a tile. Grid: groups / 4 rounded up, row tiles of the piece.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.declare import kernel
from edgellm.backends.cuda.kernels.pack import number_of
from edgellm.backends.cuda.ptx import (
    cuda,
    device,
    f16_to_f32,
    f32,
    f32_to_f16,
    fabs,
    fma,
    fmax,
    funnel_left,
    quad_max,
    rcp,
    round_i32,
    u32,
)

THREADS = 128
_WARPS = THREADS // 32


@device
def inverse_of(step):
    """1 / step, to the last bit but for rare cases; 0 for 0."""
    guess = rcp(step)
    return fma(fma(-step, guess, f32(1)), guess, guess) if step > f32(0) else f32(0)


def declare_quantize(bits, group):
    """Declare the kernel for codes of `bits` in groups of `group`."""
    middle, blocks = 1 << bits - 1, group // 16
    values, part = 8 * blocks, f32(1 / (middle - 1))

    @device
    def code_of(value, inverse):
        code = u32(round_i32(value * inverse) + middle)
        return code if code < u32(2 * middle) else u32(2 * middle - 1)

    @kernel(
        f"quantize_w{bits}g{group}",
        (
            ("source", "u32*"),
            ("tiles", "u32*"),
            ("scales", "u32*"),
            ("rows", "u32"),  # of the piece
            ("inputs", "u32"),
            ("steps", "u32"),
            ("first_tile", "u32"),
            ("kind", "u32"),
            ("factor", "f32"),
            ("inverse", "f32"),  # 1 / factor
        ),
        threads=THREADS,
        lowest=70,
    )
    def quantize(source, tiles, scales, rows, inputs, steps, first_tile, kind, factor, inverse):
        lane = u32(u32(cuda.threadIdx.x) & u32(31))
        g, t = u32(lane >> u32(2)), u32(lane & u32(3))
        number = u32(u32(cuda.blockIdx.x) * u32(_WARPS) + (u32(cuda.threadIdx.x) >> u32(5)))
        groups = u32(steps * u32(128 // group))
        if number >= groups:
            return
        row = u32(u32(cuda.blockIdx.y) * u32(16) + g)
        first = u32(number * u32(group) + t * u32(2))
        lower, upper = f32(0), f32(0)
        for i in range(u32(values)):
            k = u32(first + (i >> u32(3)) * u32(16) + ((i >> u32(1)) & u32(1)) * u32(8) + (i & u32(1)))
            own = u32(row + ((i >> u32(2)) & u32(1)) * u32(8))
            if own < rows and k < inputs:
                value = fabs(number_of(source, kind, u32(own * inputs + k)))
                if i & u32(4):
                    upper = fmax(upper, value)
                else:
                    lower = fmax(lower, value)
        low_half = f32_to_f16(quad_max(lower) * inverse * part)
        high_half = f32_to_f16(quad_max(upper) * inverse * part)
        low_inverse = inverse_of(f16_to_f32(low_half) * factor)
        high_inverse = inverse_of(f16_to_f32(high_half) * factor)
        tile = u32(first_tile + u32(cuda.blockIdx.y))
        if t == u32(0):
            scales[u32((tile * groups + number) * u32(8) + g)] = u32(u32(low_half) | (u32(high_half) << u32(16)))
        for b in range(u32(blocks)):
            low, high = u32(0), u32(0)  # bytes: k 2t, 2t + 8, 2t + 1, 2t + 9
            for i in range(u32(4)):
                k = u32(first + b * u32(16) + (i >> u32(1)) * u32(8) + (i & u32(1)))
                place = u32((i & u32(1)) * u32(16) + (i >> u32(1)) * u32(8))
                if k < inputs and row < rows:
                    low = u32(low | (code_of(number_of(source, kind, u32(row * inputs + k)), low_inverse) << place))
                if k < inputs and row + u32(8) < rows:
                    high = u32(
                        high
                        | (code_of(number_of(source, kind, u32((row + u32(8)) * inputs + k)), high_inverse) << place)
                    )
            block = u32(number * u32(blocks) + b)
            if bits == 4:
                word = u32(low | (high << u32(4)))
                at = u32((tile * steps * u32(2) + (block >> u32(2))) * u32(128) + lane * u32(4) + (block & u32(3)))
                tiles[at] = funnel_left(word, word, u32(3))
            else:
                at = u32((tile * steps * u32(4) + (block >> u32(1))) * u32(128) + lane * u32(4))
                at = u32(at + (block & u32(1)) * u32(2))
                tiles[at] = low
                tiles[u32(at + u32(1))] = high

    return quantize


declare_quantize(8, 128)
declare_quantize(4, 32)

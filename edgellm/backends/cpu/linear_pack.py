"""Dense weights into packed blocks: to float16, or rounded to 8 or 4 bits in groups.

    INT8    scale = max |w| / 127 of a group,  q = round(w / scale) + 128
    INT4    q = round(w / scale) + 8 with the scale that leaves the least squared error among `_SHRINKS`: each puts the
            weight of the largest magnitude, whatever its sign, near -8, and is then fitted to its codes,
            scale = sum(w q) / sum(q q) [the search of llama.cpp's 4-bit formats]
    slices  of 8 bits: scale = max |w| / 119,  q = round(w / scale) + 136 = 64 a + 16 b + c: from 17 to 255
            of 4 bits: the code of INT4 = 4 a + b

Kernels, for NumPy goes over such a weight many times: an lm_head of 500 MB is most of what loading has to compute. A
block of rows is turned into columns first, float32 [inputs, LANES]: from there on a lane is a row, as in the packed
block, and there is no sum across lanes.
"""

from __future__ import annotations

import numpy as np

from edgellm.backends.cpu.jit import kernel
from edgellm.backends.cpu.layout import LinearKind
from edgellm.backends.cpu.scratch import PACK_COLUMNS
from edgellm.simd import (
    F32_LANES,
    convert_i32,
    fma,
    interleave_high,
    interleave_low,
    load_bf16,
    load_f16,
    load_f32,
    maximum,
    minimum,
    reduce_max,
    select,
    splat_f32,
    splat_i32,
    store,
    store_f16,
    zero_f32,
    zero_i32,
)

_LANES = F32_LANES
_SQUARE = F32_LANES * F32_LANES
#: Rounds of interleaving that turn a square: the logarithm of its side.
_ROUNDS = F32_LANES.bit_length() - 1
#: Where columns begin in the scratch, behind two squares.
_COLUMNS = PACK_COLUMNS
_F16, _INT8, _INT4 = int(LinearKind.F16), int(LinearKind.INT8), int(LinearKind.INT4)
#: What `sizes` holds of each slice.
_SLICE = 2
#: Of Gaussian groups of 32 they leave 0.0066 of the squares, twelve finer steps 0.0065, the first guess alone 0.0074.
_SHRINKS = (1.08, 1.0, 0.93, 0.86, 0.79)
#: Groups whose magnitudes stay below it count as zeros in 4 bits.
_TINY = np.float32(1e-30)
#: Of 8 bits in slices: what the largest weight becomes, and what is added.
_SLICES_TOP, _SLICES_MIDDLE = 119, 136
#: Added and taken away it rounds a float of up to 2**22 to the nearest whole number, ties to even.
_ROUNDER = np.float32(1.5 * 2**23)


@kernel
def pack_dense(out, stored, code, scratch, sizes, factor):
    """A part of a dense weight (`layout.Part`): whole blocks, a stretch of their inputs.

    Args:
        out: uint8, the packed weight.
        stored: uint8, rows of numbers.
        code: what they are stored as, of `packing.STORED_CODES`.
        scratch: float32 [scratch_floats of the stretch, or of the numbers that are read of a row if more].
        sizes: int64 [9 + 2 slices]: the `LinearKind`, inputs of the stretch with their padding, group, where a piece's
            lines begin in it; numbers from a row to the next, the first and the end of those that are read (LANES at
            least), the first row and the end of the rows; of each slice, where the part begins and bytes of a piece.
        factor: float32, of the whole weight.

    Returns:
        The largest magnitude among the numbers.
    """
    kind, inputs, group, lines = sizes[0], sizes[1], sizes[2], sizes[3]
    stride, first, count, end = sizes[4], sizes[5], sizes[6] - sizes[5], sizes[8]
    places, slices = sizes[9:], (sizes.shape[0] - 9) // _SLICE
    most = zero_f32()
    for i in range(count, inputs):
        store(scratch, _COLUMNS + i * _LANES, zero_f32())
    for row in range(sizes[7], end, _LANES):
        at = places[0]
        turn_rows(scratch, stored, code, row * stride + first, stride, count, min(_LANES, end - row))
        if kind == _F16:
            most = maximum(_to_float16(out, at + lines, scratch, inputs, np.float32(1.0) / factor), most)
        elif kind == _INT8:
            most = maximum(_to_int8(out, at, at + lines, scratch, inputs, group, factor), most)
        elif slices == 3:
            most = maximum(_to_slices(out, places, lines, scratch, inputs, group, factor), most)
        else:
            second = places[_SLICE] if slices == 2 else at
            most = maximum(_to_int4(out, at, lines, second, scratch, inputs, group, factor), most)
        for i in range(0, places.shape[0], _SLICE):
            places[i] += places[i + 1]
    return reduce_max(most)


@kernel
def turn_rows(scratch, stored, code, first, stride, count, here):
    """The `count` columns of a block: column i has number `first` + lane * stride + i in its first `here` lanes, zeros
    in the others."""
    for lane in range(here, _LANES):
        store(scratch, lane * _LANES, zero_f32())
    for start in range(0, count, _LANES):
        i = min(start, count - _LANES)  # the last square reaches back over columns that are there already
        for lane in range(here):
            at = first + lane * stride + i
            if code == 0:
                store(scratch, lane * _LANES, load_f32(stored, 4 * at))
            elif code == 1:
                store(scratch, lane * _LANES, load_f16(stored, 2 * at))
            else:
                store(scratch, lane * _LANES, load_bf16(stored, 2 * at))
        _turn_square(scratch, _COLUMNS + i * _LANES)


@kernel
def _turn_square(scratch, out):
    """The square at the begin of the scratch to `out`, rows and columns exchanged, by rounds of perfect shuffles."""
    source = 0
    for turn in range(_ROUNDS):
        target = out if turn == _ROUNDS - 1 else _SQUARE - source
        for k in range(_LANES // 2):
            a = load_f32(scratch, source + k * _LANES)
            b = load_f32(scratch, source + (k + _LANES // 2) * _LANES)
            store(scratch, target + 2 * k * _LANES, interleave_low(a, b))
            store(scratch, target + (2 * k + 1) * _LANES, interleave_high(a, b))
        source = target


@kernel
def _to_float16(out, line, columns, inputs, inverse):
    most = zero_f32()
    for i in range(inputs):
        x = load_f32(columns, _COLUMNS + i * _LANES)
        most = maximum(abs(x), most)
        store_f16(out, line + 2 * _LANES * i, x * splat_f32(inverse))
    return most


@kernel
def _largest(columns, start, group):
    """The largest magnitude of each row's group."""
    most = zero_f32()
    for i in range(start, start + group * _LANES, _LANES):
        most = maximum(abs(load_f32(columns, i)), most)
    return most


@kernel
def _to_int8(out, scales, line, columns, inputs, group, factor):
    all_most = zero_f32()
    for start in range(_COLUMNS, _COLUMNS + inputs * _LANES, group * _LANES):
        most = _largest(columns, start, group)
        all_most = maximum(most, all_most)
        inverse = _put_scale(out, scales, most * splat_f32(np.float32(1.0) / (np.float32(127.0) * factor)), factor)
        scales += 2 * _LANES
        for i in range(start, start + group * _LANES, 4 * _LANES):
            word = zero_i32()
            for j in range(4):
                q = convert_i32(load_f32(columns, i + j * _LANES) * inverse)
                q = minimum(maximum(q, splat_i32(-127)), splat_i32(127)) + splat_i32(128)
                word |= q << 8 * j
            store(out, line, word)
            line += 4 * _LANES
    return all_most


@kernel
def _to_slices(out, places, lines, columns, inputs, group, factor):
    """8 bits in three slices."""
    all_most = zero_f32()
    first, second, third = places[0], places[_SLICE], places[2 * _SLICE]
    scales, crumbs, nibbles = 0, lines, lines
    for start in range(_COLUMNS, _COLUMNS + inputs * _LANES, group * _LANES):
        most = _largest(columns, start, group)
        all_most = maximum(most, all_most)
        top = np.float32(1.0) / (np.float32(_SLICES_TOP) * factor)
        inverse = _put_scale(out, third + scales, most * splat_f32(top), factor)
        step = load_f16(out, third + scales)
        store_f16(out, second + scales, step * splat_f32(np.float32(16.0)))
        store_f16(out, first + scales, step * splat_f32(np.float32(64.0)))
        scales += 2 * _LANES
        for i in range(start, start + group * _LANES, 16 * _LANES):
            highs, middles = zero_i32(), zero_i32()
            for eight in range(2):
                lows = zero_i32()
                for j in range(8):
                    q = convert_i32(load_f32(columns, i + (8 * eight + j) * _LANES) * inverse)
                    q = minimum(maximum(q, splat_i32(-_SLICES_TOP)), splat_i32(_SLICES_TOP)) + splat_i32(_SLICES_MIDDLE)
                    shift = 8 * (j % 4) + j // 4 * 2 + 4 * eight
                    highs |= (q >> 6) << shift
                    middles |= (q >> 4 & splat_i32(3)) << shift
                    lows |= (q & splat_i32(15)) << 8 * (j % 4) + j // 4 * 4
                store(out, third + nibbles, lows)
                nibbles += 4 * _LANES
            store(out, first + crumbs, highs)
            store(out, second + crumbs, middles)
            crumbs += 4 * _LANES
    return all_most


@kernel
def _put_scale(out, at, scales, factor):
    """Scales into their place, and their inverse as rounded: codes must fit that one. 0 leaves codes of no weight."""
    store_f16(out, at, scales)
    step = load_f16(out, at) * splat_f32(factor)
    return select(step != zero_f32(), splat_f32(1.0) / step, zero_f32())


@kernel
def _to_int4(out, first, lines, second, columns, inputs, group, factor):
    """4 bits; in two slices where `first` and `second` differ."""
    all_most = zero_f32()
    scales, line = 0, lines
    for start in range(_COLUMNS, _COLUMNS + inputs * _LANES, group * _LANES):
        high, low = zero_f32(), zero_f32()
        for i in range(start, start + group * _LANES, _LANES):
            x = load_f32(columns, i)
            high, low = maximum(x, high), minimum(x, low)
        most = maximum(high, -low)
        all_most = maximum(most, all_most)
        extreme = select(most > splat_f32(_TINY), select(high > -low, high, low), zero_f32())
        best, scale = zero_f32(), zero_f32()
        for shrink in _SHRINKS:
            step = extreme * splat_f32(np.float32(-shrink / 8))
            inverse = select(step != zero_f32(), splat_f32(1.0) / step, zero_f32())
            products, squares = _fit(columns, start, group, inverse)
            fitted = select(squares > zero_f32(), products / squares, zero_f32())
            explained = products * fitted * splat_f32(np.float32(shrink * shrink))
            better = explained > best
            best, scale = select(better, explained, best), select(better, step * fitted, scale)
        inverse = _put_scale(out, second + scales, scale * splat_f32(np.float32(1.0) / factor), factor)
        if second != first:
            store_f16(out, first + scales, load_f16(out, second + scales) * splat_f32(np.float32(4.0)))
            _put_crumbs(out, first + line, second + line, columns, start, start + group * _LANES, inverse)
            line += group // 4 * _LANES
        else:
            _put_nibbles(out, first + line, columns, start, start + group * _LANES, inverse)
            line += group // 2 * _LANES
        scales += 2 * _LANES
    return all_most


@kernel
def _put_nibbles(out, line, columns, first, last, inverse):
    for i in range(first, last, 8 * _LANES):
        word = zero_i32()
        for j in range(8):
            q = convert_i32(_code4(load_f32(columns, i + j * _LANES) * inverse)) + splat_i32(8)
            word |= q << 8 * (j % 4) + j // 4 * 4
        store(out, line, word)
        line += 4 * _LANES


@kernel
def _put_crumbs(out, high_line, low_line, columns, first, last, inverse):
    for i in range(first, last, 16 * _LANES):
        highs, lows = zero_i32(), zero_i32()
        for j in range(16):
            q = convert_i32(_code4(load_f32(columns, i + j * _LANES) * inverse)) + splat_i32(8)
            highs |= (q >> 2) << 8 * (j % 4) + j // 4 * 2
            lows |= (q & splat_i32(3)) << 8 * (j % 4) + j // 4 * 2
        store(out, high_line, highs)
        store(out, low_line, lows)
        high_line += 4 * _LANES
        low_line += 4 * _LANES


@kernel
def _code4(x):
    rounded = (x + splat_f32(_ROUNDER)) - splat_f32(_ROUNDER)
    return minimum(maximum(rounded, splat_f32(-8.0)), splat_f32(7.0))


@kernel
def _fit(columns, start, group, inverse):
    """Sums of u q and of q q over a group, u = w * inverse: scale * (u q) / (q q) is the best scale for these codes."""
    products, squares = zero_f32(), zero_f32()
    for i in range(start, start + group * _LANES, _LANES):
        x = load_f32(columns, i) * inverse
        q = _code4(x)
        products, squares = fma(x, q, products), fma(q, q, squares)
    return products, squares

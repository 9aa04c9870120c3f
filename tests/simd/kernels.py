"""Tiny kernels that put every op through its paces; a row of the output for each, named in the tuple beside the kernel.

Few kernels with many ops, because compiling is what takes the time.
"""

from __future__ import annotations

from numba import njit

from edgellm.simd import (
    F32_LANES,
    I8_LANES,
    I16_LANES,
    I32_LANES,
    U8_LANES,
    atomic_add,
    atomic_load,
    atomic_store,
    bitcast_f32,
    bitcast_i8,
    bitcast_i16,
    bitcast_u8,
    broadcast_f32,
    broadcast_i8x4,
    broadcast_i32,
    broadcast_u8x16,
    concat_even,
    concat_odd,
    convert_f32,
    convert_i32,
    dot_i8i8,
    dot_i16i16,
    dot_u7i8,
    dot_u8i8,
    exp,
    first_n,
    fma,
    high_nibbles,
    indices,
    interleave_high,
    interleave_low,
    load_bf16,
    load_f16,
    load_f32,
    load_i8,
    load_i8_to_i32,
    load_i16,
    load_i32,
    load_n_f32,
    load_u8,
    load_u8_to_i32,
    low_nibbles,
    maximum,
    minimum,
    pause,
    prefetch,
    prefetch_l2,
    reduce_add,
    reduce_max,
    round_i32,
    rsqrt,
    select,
    sigmoid,
    splat_f32,
    splat_i8,
    splat_i16,
    splat_i32,
    splat_u8,
    sqrt,
    store,
    store_bf16,
    store_f16,
    store_i32_to_i8,
    store_i32_to_i16,
    store_n,
    store_quads,
    table_lookup,
    tanh,
    ticks,
    tile,
    tile_set,
    widen_high,
    widen_low,
    yield_thread,
    zero_f32,
    zero_i32,
)

FLOAT_ROWS = ("add", "sub", "mul", "div", "neg", "abs", "fma", "minimum", "maximum", "sqrt", "rsqrt", "splat")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


@njit(nogil=True)
def floats(a, b, c, out, compared):
    """float32 [n] three times -> out float32 [rows, n], compared float32 [6, n] of 1 and 0."""
    one, zero = splat_f32(1.0), zero_f32()
    for i in range(0, a.shape[0], F32_LANES):
        x, y, z = load_f32(a, i), load_f32(b, i), load_f32(c, i)
        store(out[0], i, x + y)
        store(out[1], i, x - y)
        store(out[2], i, x * y)
        store(out[3], i, x / y)
        store(out[4], i, -x)
        store(out[5], i, abs(x))
        store(out[6], i, fma(x, y, z))
        store(out[7], i, minimum(x, y))
        store(out[8], i, maximum(x, y))
        store(out[9], i, sqrt(x))
        store(out[10], i, rsqrt(x))
        store(out[11], i, splat_f32(a[i]))
        store(compared[0], i, select(x < y, one, zero))
        store(compared[1], i, select(x <= y, one, zero))
        store(compared[2], i, select(x > y, one, zero))
        store(compared[3], i, select(x >= y, one, zero))
        store(compared[4], i, select(x == y, one, zero))
        store(compared[5], i, select(x != y, one, zero))


@njit(nogil=True)
def elementary(a, out):
    """float32 [n] -> exp, sigmoid, tanh in float32 [3, n]."""
    for i in range(0, a.shape[0], F32_LANES):
        x = load_f32(a, i)
        store(out[0], i, exp(x))
        store(out[1], i, sigmoid(x))
        store(out[2], i, tanh(x))


@njit(nogil=True)
def converts(floats, words, out_f, out_i, halves, bytes_out, words_out):
    """float32 [n], int32 [n] -> float32 [3, n], int32 [1, n], uint16 [2, n], int8 [n], int16 [n]: there and back."""
    for i in range(0, floats.shape[0], F32_LANES):
        x = load_f32(floats, i)
        store(out_i[0], i, convert_i32(x))
        store(out_f[0], i, convert_f32(load_i32(words, i)))
        store_f16(halves[0], i, x)
        store_bf16(halves[1], i, x)
        store(out_f[1], i, load_f16(halves[0], i))
        store(out_f[2], i, load_bf16(halves[1], i))
        store_i32_to_i8(bytes_out, i, load_i32(words, i))
        store_i32_to_i16(words_out, i, load_i32(words, i))


@njit(nogil=True)
def rounds(floats, stride, out, quads):
    """float32 [n] -> rounded in int32 [n]; their lower bytes as quads, `stride` apart, a vector behind the other."""
    for i in range(0, floats.shape[0], F32_LANES):
        whole = round_i32(load_f32(floats, i))
        store(out, i, whole)
        store_quads(quads, i // F32_LANES * (F32_LANES // 4) * stride, stride, whole)


@njit(nogil=True)
def halves_to_floats(halves, out):
    """uint16 [n] -> float16 and bfloat16 widened, float32 [2, n]."""
    for i in range(0, halves.shape[0], F32_LANES):
        store(out[0], i, load_f16(halves, i))
        store(out[1], i, load_bf16(halves, i))


INTEGER_ROWS = ("add", "sub", "and", "or", "xor", "invert", "shl", "shr", "minimum", "maximum", "splat", *COMPARISONS)
SIGNED_ROWS = ("neg", "abs")


def integers(load, splat, lanes):
    """A kernel over one integer type: two arrays [n], a shift -> out [rows, n]."""

    @njit(nogil=True)
    def kernel(a, b, shift, out):
        one, zero = splat(1), splat(0)
        for i in range(0, a.shape[0], lanes):
            x, y = load(a, i), load(b, i)
            store(out[0], i, x + y)
            store(out[1], i, x - y)
            store(out[2], i, x & y)
            store(out[3], i, x | y)
            store(out[4], i, x ^ y)
            store(out[5], i, ~x)
            store(out[6], i, x << shift)
            store(out[7], i, x >> shift)
            store(out[8], i, minimum(x, y))
            store(out[9], i, maximum(x, y))
            store(out[10], i, splat(a[i]))
            store(out[11], i, select(x < y, one, zero))
            store(out[12], i, select(x <= y, one, zero))
            store(out[13], i, select((x > y) & ~(x <= y), one, zero))
            store(out[14], i, select((x >= y) | (x == y), one, zero))
            store(out[15], i, select(x == y, one, zero))
            store(out[16], i, select((x != y) ^ (one == zero), one, zero))

    return kernel


INTEGER_KERNELS = {
    "i32": integers(load_i32, splat_i32, I32_LANES),
    "i16": integers(load_i16, splat_i16, I16_LANES),
    "i8": integers(load_i8, splat_i8, I8_LANES),
    "u8": integers(load_u8, splat_u8, U8_LANES),
}


@njit(nogil=True)
def signed(a32, b32, a16, b16, a8, out32, out16, out8):
    """Negation, absolute value and product of the signed integers that have them: int [3, n] or [2, n]."""
    for i in range(0, a32.shape[0], I32_LANES):
        x = load_i32(a32, i)
        store(out32[0], i, -x)
        store(out32[1], i, abs(x))
        store(out32[2], i, x * load_i32(b32, i))
    for i in range(0, a16.shape[0], I16_LANES):
        y = load_i16(a16, i)
        store(out16[0], i, -y)
        store(out16[1], i, abs(y))
        store(out16[2], i, y * load_i16(b16, i))
    for i in range(0, a8.shape[0], I8_LANES):
        z = load_i8(a8, i)
        store(out8[0], i, -z)
        store(out8[1], i, abs(z))


@njit(nogil=True)
def dots(u, s, acc, out):
    """uint8 [n], int8 [n], int32 [n / 4] -> dot_u8i8, dot_u7i8 of the lower bits, dot_i8i8 of both signed."""
    for i in range(0, u.shape[0], U8_LANES):
        start, x, y = load_i32(acc, i // 4), load_u8(u, i), load_i8(s, i)
        store(out[0], i // 4, dot_u8i8(start, x, y))
        store(out[1], i // 4, dot_u7i8(start, x & splat_u8(127), y))
        store(out[2], i // 4, dot_i8i8(start, bitcast_i8(x), y))


@njit(nogil=True)
def word_dots(a, b, acc, out):
    """int16 [n] twice, int32 [n / 2] -> dot_i16i16."""
    for i in range(0, a.shape[0], I16_LANES):
        store(out, i // 2, dot_i16i16(load_i32(acc, i // 2), load_i16(a, i), load_i16(b, i)))


BYTE_ROWS = ("low_nibbles", "high_nibbles", "lookup", "lookup_signed", "low", "high", "even", "odd", "block", "quad")


@njit(nogil=True)
def shuffles(a, b, out, wide, words):
    """uint8 [vector] twice -> uint8 [rows, vector], int16 [4, vector / 2], int32 [2, vector / 4]."""
    x, y = load_u8(a, 0), load_u8(b, 0)
    store(out[0], 0, low_nibbles(x))
    store(out[1], 0, high_nibbles(x))
    store(out[2], 0, table_lookup(y, low_nibbles(x)))
    store(out[3], 0, table_lookup(bitcast_i8(y), low_nibbles(x)))
    store(out[4], 0, interleave_low(x, y))
    store(out[5], 0, interleave_high(x, y))
    store(out[6], 0, concat_even(x, y))
    store(out[7], 0, concat_odd(x, y))
    store(out[8], 0, broadcast_u8x16(a, 0))
    store(out[9], 0, broadcast_i8x4(b, 4))
    store(wide[0], 0, widen_low(x))
    store(wide[1], 0, widen_high(x))
    store(wide[2], 0, widen_low(bitcast_i8(x)))
    store(wide[3], 0, widen_high(bitcast_i8(x)))
    store(words[0], 0, widen_low(bitcast_i16(x)))
    store(words[1], 0, widen_high(bitcast_i16(x)))


@njit(nogil=True)
def word_shuffles(a, b, out):
    """float32 [vector] twice -> the four changes of places, float32 [4, vector]."""
    x, y = load_f32(a, 0), load_f32(b, 0)
    store(out[0], 0, interleave_low(x, y))
    store(out[1], 0, interleave_high(x, y))
    store(out[2], 0, concat_even(x, y))
    store(out[3], 0, concat_odd(x, y))


@njit(nogil=True)
def memory(arena, at, typed, out, count):
    """uint8 arena read from byte `at`, any alignment; typed float32 -> out float32 [rows, vector]."""
    prefetch(arena, at + arena.shape[0])
    prefetch_l2(arena, at)
    store(out[0], 0, load_f32(arena, at))
    store(out[1], 0, bitcast_f32(load_i32(arena, at)))
    store(out[2], 0, bitcast_f32(load_i16(arena, at)))
    store(out[3], 0, bitcast_f32(bitcast_u8(load_i8(arena, at))))
    store(out[4], 0, convert_f32(load_i8_to_i32(arena, at)))
    store(out[5], 0, convert_f32(load_u8_to_i32(arena, at)))
    store(out[6], 0, load_f16(arena, at))
    store(out[7], 0, load_bf16(arena, at))
    store(out[8], 0, broadcast_f32(arena, at))
    store(out[9], 0, bitcast_f32(broadcast_i32(arena, at)))
    store(out[10], 0, load_f32(typed, 1))
    store(out[11], 0, broadcast_f32(typed, 2))
    store(out[12], 0, load_n_f32(typed, 1, count))
    store_n(out[13], 0, load_f32(typed, 0), count)
    store(out[14], 0, select(first_n(count), splat_f32(1.0), zero_f32()))
    store(arena, at + 3, load_f32(typed, 0))


@njit(nogil=True)
def last_n(values, out, at, count):
    """The tail of an array, whose end is the end of what may be touched."""
    store_n(out, at, load_n_f32(values, at, count), count)


@njit(nogil=True)
def reductions(a, words, out):
    """float32 [vector], int32 [vector] -> sums and largest, float64 [4]."""
    x, y = load_f32(a, 0), load_i32(words, 0)
    out[0] = reduce_add(x)
    out[1] = reduce_max(x)
    out[2] = reduce_add(y)
    out[3] = reduce_max(y)


TILE = 3


@njit(nogil=True)
def tiles(u, quads, scales, out_i, out_f):
    """One vector of weights against `TILE` quads; every kind of operator over tiles -> [TILE, vector] each."""
    w = load_u8(u, 0)
    acc = tile(zero_i32(), TILE)
    acc = dot_u7i8(acc, low_nibbles(w), broadcast_i8x4(quads, indices(0, 4, TILE)))
    acc += splat_i32(5)
    acc = splat_i32(-1) + acc
    acc = tile_set(acc, 1, acc[2] << 2)
    store(out_i, indices(0, I32_LANES, TILE), acc)
    values = exp(-abs(convert_f32(acc) * broadcast_f32(scales, indices(0, 1, TILE))))
    store(out_f, indices(0, F32_LANES, TILE), select(values > splat_f32(0.5), values, -values))
    total = 0.0
    for position in range(TILE):
        total += reduce_add(values)[position]
    return total


@njit(nogil=True)
def count_up(cells, turns):
    """Each turn adds one to cells[0]; cells[8] tells what the last turn found."""
    for _ in range(turns):
        atomic_store(cells, 8, atomic_add(cells, 0, 1))
        pause()
    return atomic_load(cells, 8)


@njit(nogil=True)
def elapsed(turns):
    start = ticks()
    for _ in range(turns):
        pause()
        yield_thread()
    return ticks() - start

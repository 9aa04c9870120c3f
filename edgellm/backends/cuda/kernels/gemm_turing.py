"""Prefill on sm_75: `gemm.py` without `cp.async` and with products of 8 inputs, two where sm_80 takes one.

A stage of tokens goes through registers: it is read before the products of the stage before it and written to shared
memory after them. What is dequantized and how sums leave is `gemm.py`'s. Rows of x end with whole pieces of 16 bytes:
`inputs` is a multiple of 8.
"""

from __future__ import annotations

from edgellm.backends.cuda.kernels.declare import kernel
from edgellm.backends.cuda.kernels.gemm import PARAMETERS, ROOM, THREADS, WARPS, make_compute, make_leave, make_load
from edgellm.backends.cuda.ptx import cuda, device, f32, ld128, mma_m16n8k8_f16, shfl_u32, sts128, u32

_TOKENS = 64
_COPIED_ROWS = THREADS // 8
_COPIES = _TOKENS // _COPIED_ROWS
_STAGE_WORDS = _TOKENS * 32
_ROOM_WORDS = _TOKENS * ROOM


@device
def multiply(acc, o, a, b0, b1):
    """acc[o .. o + 3] += A B of 8 tokens."""
    c0, c1, c2, c3 = mma_m16n8k8_f16(a[0], a[1], b0, acc[o], acc[o + u32(1)], acc[o + u32(2)], acc[o + u32(3)])
    acc[o], acc[o + u32(1)], acc[o + u32(2)], acc[o + u32(3)] = mma_m16n8k8_f16(a[2], a[3], b1, c0, c1, c2, c3)


@device
def take(held, x, token, limit, x_stride, k, inputs):
    """The thread's pieces of a stage, 8 inputs of every sixteenth token from `token` on; 0 beyond."""
    for i in range(u32(_COPIES)):
        o, t = u32(i * u32(4)), u32(token + i * u32(_COPIED_ROWS))
        held[o], held[o + u32(1)], held[o + u32(2)], held[o + u32(3)] = u32(0), u32(0), u32(0), u32(0)
        if t < limit and k < inputs:
            held[o], held[o + u32(1)], held[o + u32(2)], held[o + u32(3)] = ld128(x, u32(t * x_stride + k))


@device
def put(stage, place, held, row, column):
    """What `take` took into shared memory, where `gemm.fetch` would put it."""
    to = u32(place + row * u32(32) + ((column ^ (row & u32(7))) << u32(2)))
    for i in range(u32(_COPIES)):
        o = u32(i * u32(4))
        at = u32(to + i * u32(_COPIED_ROWS * 32))
        sts128(stage, at, held[o], held[o + u32(1)], held[o + u32(2)], held[o + u32(3)])


def declare_gemm(bits, group):
    """Declare the kernel for weights of `bits` and groups of 16, 32 or (64) 64 and more."""
    parts = 64 // group
    words, scale_words, zero_shift = 2 * bits, 4 * parts, 2 * bits
    shared_words = max(2 * _STAGE_WORDS, WARPS * _ROOM_WORDS)
    load, compute, leave = make_load(bits, parts), make_compute(bits, parts, _TOKENS, multiply), make_leave(_TOKENS)
    zeros_type = "u32*" if bits == 8 else "u16*"
    parameters = tuple((name, zeros_type if name == "zeros" else kind) for name, kind in PARAMETERS)
    name = f"gemm_w{bits}g{group}_t{_TOKENS}_turing" if bits < 16 else f"gemm_w16_t{_TOKENS}_turing"

    @kernel(name, parameters, threads=THREADS, lowest=75, registers=255, expects=("LDG.E.*128", "HMMA", "LDSM"))
    def gemm(
        tiles, scales, zeros, bias, x, x_scales, out, rows, row_tiles, inputs, steps, tokens, x_stride, out_stride,
        group_log, zero, flags, factor, multiplier, softcap,
    ):  # fmt: skip
        stage = cuda.shared.array(shared_words, f32, alignment=16)
        acc = cuda.local.array(_TOKENS, f32)
        q, sz = cuda.local.array(words, u32), cuda.local.array(scale_words, u32)
        held = cuda.local.array(16, u32)
        tid = u32(cuda.threadIdx.x)
        lane, warp = u32(tid & u32(31)), shfl_u32(u32(tid >> u32(5)), u32(0))
        first_token = u32(u32(cuda.blockIdx.x) * u32(_TOKENS))
        row, column = u32(tid >> u32(3)), u32(tid & u32(7))
        token, limit = u32(first_token + row), u32(first_token + u32(_TOKENS))
        limit = limit if limit < tokens else tokens
        tile, last_tile = u32(u32(cuda.blockIdx.y) * u32(8) + warp * u32(2)), u32(row_tiles - u32(1))
        tile0 = tile if tile < last_tile else last_tile
        tile1 = u32(tile + u32(1)) if tile < last_tile else last_tile
        zero_pair = u32(zero | (zero << u32(zero_shift)))
        k_tiles = u32(steps * u32(2))
        for i in range(u32(_TOKENS)):
            acc[i] = f32(0)
        take(held, x, token, limit, x_stride, u32(column * u32(8)), inputs)
        place = u32(0)
        for k_tile in range(k_tiles):
            put(stage, place, held, row, column)
            cuda.syncthreads()
            take(held, x, token, limit, x_stride, u32((k_tile + u32(1)) * u32(64) + column * u32(8)), inputs)
            load(q, sz, u32(0), tiles, scales, zeros, tile0, steps, u32(k_tile), lane, group_log, zero_pair, flags)
            load(q, sz, u32(1), tiles, scales, zeros, tile1, steps, u32(k_tile), lane, group_log, zero_pair, flags)
            compute(acc, q, sz, stage, place, lane)
            place = u32(u32(_STAGE_WORDS) - place)
        cuda.syncthreads()
        for which in range(u32(2)):
            leave(
                acc, u32(which * u32(_TOKENS // 2)), stage, u32(warp * u32(_ROOM_WORDS)), out, bias, x_scales,
                u32(tile + which), row_tiles, first_token, tokens, rows, out_stride, lane, flags, factor, multiplier,
                softcap,
            )  # fmt: skip

    return gemm


for _bits in (4, 8):
    for _group in (16, 32, 64):
        declare_gemm(_bits, _group)
declare_gemm(16, 64)

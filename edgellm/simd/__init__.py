"""Vectors for kernels written in Python: numba compiles them to the processor's vector instructions.

    from numba import njit
    from edgellm.simd import F32_LANES, fma, load_f32, reduce_add, zero_f32

    @njit(nogil=True)
    def dot(x, y):  # two float32 arrays, a multiple of F32_LANES long
        acc = zero_f32()
        for i in range(0, x.shape[0], F32_LANES):
            acc = fma(load_f32(x, i), load_f32(y, i), acc)
        return reduce_add(acc)

The ISA is chosen once (`TARGET`); a vector fills its registers, so a kernel counts in lanes and runs on all of them.
With `NUMBA_DISABLE_JIT=1` the same kernel runs as plain Python, with every access checked (`emulate.py`).

    types       F32 I32 I16 I8 U8, and the mask of a comparison; nothing converts by itself
    make        zero_* splat_* first_n
    memory      load_* store* broadcast_* prefetch*; load_n_f32 and store_n for tails; f16, bf16, i8 convert on the way
    arithmetic  + - * / abs - fma minimum maximum sqrt rsqrt exp sigmoid tanh
    bits        & | ^ ~ << >> low_nibbles high_nibbles bitcast_*
    compare     < <= > >= == != select
    convert     convert_f32 convert_i32 round_i32 widen_low widen_high
    dot         dot_u7i8 dot_u8i8 dot_i8i8: four bytes into each 32-bit lane; dot_i16i16: two words
    tiles       tile indices tile_set: several vectors at once, in registers, by every op and operator
    shuffle     table_lookup interleave_low interleave_high concat_even concat_odd
    reduce      reduce_add reduce_max
    threads     atomic_add atomic_load atomic_store pause yield_thread ticks

What each does stands beside it, in `operators.py`, `arithmetic.py`, `memory.py`, `convert.py`, `dot.py`, `tiles.py`,
`elementary.py` and `threads.py`; what differs between ISAs in `generic.py`, `x86_avx2.py`, `x86_avx512.py`, `neon.py`.

The ops import numba, the target and its widths do not: who needs these alone waits for no compiler.
"""

from __future__ import annotations

import importlib
from typing import Any

from edgellm.simd.target import (  # noqa: F401  (offered, as __all__ says)
    F32_LANES,
    I8_LANES,
    I16_LANES,
    I32_LANES,
    TARGET,
    U8_LANES,
    VECTOR_BYTES,
)

_WIDTHS = ("F32_LANES", "I8_LANES", "I16_LANES", "I32_LANES", "TARGET", "U8_LANES", "VECTOR_BYTES")
_ELEMENTARY = ("exp", "rsqrt", "sigmoid", "tanh")


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    ops = importlib.import_module(f"{__name__}.ops")
    if name == "__all__":
        return sorted({*ops.__all__, *_ELEMENTARY, *_WIDTHS})
    if name not in ops.__all__ and name not in _ELEMENTARY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.elementary") if name in _ELEMENTARY else ops, name)
    globals()[name] = found
    return found

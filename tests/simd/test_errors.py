"""What a kernel may not do: it does not compile, or raises where it is emulated or compiled with bounds checks."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numba import config, njit
from numba.core.errors import TypingError

from edgellm.simd import (
    F32_LANES,
    atomic_load,
    dot_u7i8,
    fma,
    indices,
    load_f32,
    load_i32,
    load_n_f32,
    load_u8,
    splat_f32,
    splat_i32,
    store,
    store_n,
    tile,
    zero_f32,
    zero_i32,
)
from tests.simd.test_isas import ROOT, clean

REFUSED = {
    "an int vector plus a float vector": lambda a: store(a, 0, splat_f32(1.0) + splat_i32(1)),
    "a vector plus a scalar": lambda a: store(a, 0, splat_f32(1.0) + 1.0),
    "a float vector shifted": lambda a: store(a, 0, splat_f32(1.0) << 1),
    "an int vector divided": lambda a: store(a, 0, splat_i32(1) / splat_i32(1)),
    "fma of ints": lambda a: store(a, 0, fma(zero_i32(), zero_i32(), zero_i32())),
    "ints stored to floats": lambda a: store(a, 0, zero_i32()),
    "ints loaded from floats": lambda a: store(a, 0, load_i32(a, 0)),
    "a dot product of words": lambda a: dot_u7i8(zero_i32(), zero_i32(), zero_i32()),
    "tiles of two lengths": lambda a: tile(zero_f32(), 2) + tile(zero_f32(), 3),
    "an atomic on floats": lambda a: atomic_load(a, 0),
    "two dimensions": lambda a: store(a.reshape(1, -1), 0, zero_f32()),
    "every second float": lambda a: store(a[::2], 0, zero_f32()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_no_conversion_is_made_by_itself(name: str) -> None:
    kernel = njit(REFUSED[name])
    with pytest.raises((TypingError, TypeError)):
        kernel(np.zeros(128, np.float32))


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="about what the compiler says")
def test_the_message_names_what_the_op_takes() -> None:
    with pytest.raises(TypingError, match=r"fma takes \(f32x\d+, f32x\d+, f32x\d+\), not \(i32x"):
        njit(REFUSED["fma of ints"])(np.zeros(128, np.float32))


def test_a_read_only_array_is_not_written() -> None:
    array = np.zeros(128, np.float32)
    array.flags.writeable = False
    with pytest.raises((TypingError, TypeError)):
        njit(lambda a: store(a, 0, zero_f32()))(array)


@njit(boundscheck=True)
def copy(source, at, out):
    store(out, 0, load_f32(source, at))


@njit(boundscheck=True)
def copy_bytes(source, at, out):
    store(out, at, load_u8(source, 0))


@njit(boundscheck=True)
def copy_n(source, at, out, count):
    store_n(out, 0, load_n_f32(source, at, count), count)


@njit(boundscheck=True)
def copy_tile(source, step, out):
    store(out, indices(0, F32_LANES, 2), load_f32(source, indices(0, step, 2)))


def test_accesses_outside_an_array_raise_where_they_are_checked() -> None:
    source, out = np.arange(2 * F32_LANES, dtype=np.float32), np.zeros(2 * F32_LANES, np.float32)
    copy(source, F32_LANES, out)
    assert out[0] == F32_LANES
    copy_tile(source, F32_LANES, out)
    assert out.tolist() == source.tolist()
    for at in (-1, F32_LANES + 1, 2**40):
        with pytest.raises(IndexError, match="vector access"):
            copy(source, at, out)
    with pytest.raises(IndexError, match="vector access"):
        copy_tile(source, F32_LANES + 1, out)
    copy_n(source, 2 * F32_LANES - 1, out, 1)
    assert out[0] == 2 * F32_LANES - 1
    with pytest.raises(IndexError, match="vector access"):
        copy_n(source, 2 * F32_LANES - 1, out, 2)
    with pytest.raises(IndexError, match="vector access"):
        copy_bytes(source.view(np.uint8), 4 * F32_LANES + 1, out.view(np.uint8))


MISUSES = """
import numpy as np
from edgellm.simd import *
u, s, one = np.full(64, 128, np.uint8), np.zeros(64, np.int8), np.ones(64, np.float32)
words = load_i32(s, 0)
for misuse in (
    lambda: dot_u7i8(zero_i32(), load_u8(u, 0), load_i8(s, 0)),
    lambda: table_lookup(load_u8(u, 0), load_u8(u, 0)),
    lambda: words << 32,
    lambda: words >> -1,
    lambda: load_f32(one, 64),
    lambda: load_n_f32(one, 63, 2),
    lambda: load_n_f32(one, 0, F32_LANES + 1),
    lambda: store_f16(u, 63, load_f32(one, 0)),
    lambda: broadcast_i8x4(u, 61),
    lambda: tile(words, 2)[2],
    lambda: tile_set(tile(words, 2), 2, words),
    lambda: atomic_add(np.zeros(4, np.int64), 4, 1),
    lambda: prefetch(u, -1),
    lambda: prefetch_l2(u, -1),
):
    try:
        misuse()
    except (ValueError, IndexError) as error:
        print(type(error).__name__)
    else:
        print("nothing")
"""


def test_the_emulated_ops_notice_what_the_lowered_ones_cannot() -> None:
    command = [sys.executable, "-c", MISUSES]
    environ = clean(NUMBA_DISABLE_JIT="1")
    shown = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    names = shown.stdout.split()
    assert names == ["ValueError"] * 4 + ["IndexError"] * 2 + ["ValueError"] + ["IndexError"] * 7

"""Memory, changes of place, tiles, threads, as this process has them, against plain Python. `test_isas.py` runs
it for each ISA.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from edgellm.simd import F32_LANES, TARGET, U8_LANES
from tests.simd import kernels, plain
from tests.simd.plain import integer_values, listed


def interleaved(a: list, b: list) -> tuple[list, list]:
    both = [value for pair in zip(a, b, strict=True) for value in pair]
    return both[: len(a)], both[len(a) :]


def test_bytes_change_places() -> None:
    lanes = U8_LANES
    a, b = integer_values(np.uint8, lanes, 8), integer_values(np.uint8, lanes, 9)
    out = np.empty((len(kernels.BYTE_ROWS), lanes), np.uint8)
    wide, words = np.empty((4, lanes // 2), np.int16), np.empty((2, lanes // 4), np.int32)
    kernels.shuffles(a, b, out, wide, words)
    rows = {name: listed(row) for name, row in zip(kernels.BYTE_ROWS, out, strict=True)}
    x, y = listed(a), listed(b)
    assert rows["low_nibbles"] == [value % 16 for value in x]
    assert rows["high_nibbles"] == [value // 16 for value in x]
    assert rows["lookup"] == rows["lookup_signed"] == [y[i // 16 * 16 + x[i] % 16] for i in range(lanes)]
    assert (rows["low"], rows["high"]) == interleaved(x, y)
    assert (rows["even"], rows["odd"]) == ((x + y)[0::2], (x + y)[1::2])
    assert rows["block"] == x[:16] * (lanes // 16)
    assert rows["quad"] == y[4:8] * (lanes // 4)
    signed = [plain.wrap(value, 8) for value in x]
    assert [listed(row) for row in wide] == [
        x[: lanes // 2],
        x[lanes // 2 :],
        signed[: lanes // 2],
        signed[lanes // 2 :],
    ]
    pairs = [plain.wrap(low + 256 * high, 16) for low, high in zip(x[0::2], x[1::2], strict=True)]
    assert [listed(row) for row in words] == [pairs[: lanes // 4], pairs[lanes // 4 :]]


def test_floats_change_places() -> None:
    lanes = F32_LANES
    a, b = np.arange(lanes, dtype=np.float32), np.arange(lanes, dtype=np.float32) + 100
    out = np.empty((4, lanes), np.float32)
    kernels.word_shuffles(a, b, out)
    x, y = listed(a), listed(b)
    assert [listed(row) for row in out] == [*interleaved(x, y), (x + y)[0::2], (x + y)[1::2]]


@pytest.mark.parametrize("at", [0, 1, 7])
@pytest.mark.parametrize("count", [0, 1, F32_LANES - 1, F32_LANES])
def test_memory_at_any_byte(at: int, count: int) -> None:
    lanes = F32_LANES
    arena = np.random.default_rng(10).integers(0, 128, at + 4 * lanes + 8).astype(np.uint8)  # no NaN among them
    typed = np.arange(1, lanes + 2, dtype=np.float32)
    raw, out = arena.tobytes(), np.full((15, lanes), -9, np.float32)
    kernels.memory(arena, at, typed, out, count)
    whole = listed(np.frombuffer(raw[at : at + 4 * lanes], "<f4"))
    for row in (0, 1, 2, 3):
        assert listed(out[row]) == whole
    assert listed(out[4]) == listed(out[5]) == list(raw[at : at + lanes])
    halves = listed(np.frombuffer(raw[at : at + 2 * lanes], "<u2"))
    assert plain.differences(out[6], [plain.half_value(bits) for bits in halves]) == []
    assert plain.differences(out[7], [plain.float_of(bits << 16) for bits in halves]) == []
    assert listed(out[8]) == listed(out[9]) == [whole[0]] * lanes
    assert listed(out[10]) == listed(typed[1:])
    assert listed(out[11]) == [3.0] * lanes
    assert listed(out[12]) == listed(typed[1:])[:count] + [0.0] * (lanes - count)
    assert listed(out[13]) == listed(typed)[:count] + [-9.0] * (lanes - count)
    assert listed(out[14]) == [1.0] * count + [0.0] * (lanes - count)
    assert arena.tobytes() == raw[: at + 3] + typed[:lanes].tobytes() + raw[at + 3 + 4 * lanes :]


def test_tails_end_where_the_array_ends() -> None:
    values, out = np.arange(10, dtype=np.float32), np.zeros(10, np.float32)
    kernels.last_n(values, out, 8, 2)
    assert listed(out) == [0.0] * 8 + [8.0, 9.0]


def test_reductions() -> None:
    rng = np.random.default_rng(11)
    values = (rng.standard_normal(F32_LANES) * 1e3).astype(np.float32)
    words = integer_values(np.int32, 16, 0)[:F32_LANES].copy()
    out = np.empty(4)
    kernels.reductions(values, words, out)
    assert out[0] == plain.fold(listed(values), lambda a, b: plain.f32(a + b))
    assert out[1] == max(listed(values))
    assert out[2] == plain.wrap(sum(listed(words)), 32)
    assert out[3] == max(listed(words))


def test_tiles_go_vector_by_vector() -> None:
    u, quads = integer_values(np.uint8, U8_LANES, 12), integer_values(np.int8, 4 * kernels.TILE, 0)[: 4 * kernels.TILE]
    scales = np.array([1e-3, -2e-4, 5e-5], np.float32)
    out_i, out_f = np.empty((kernels.TILE, F32_LANES), np.int32), np.empty((kernels.TILE, F32_LANES), np.float32)
    total = kernels.tiles(u, quads, scales, out_i.reshape(-1), out_f.reshape(-1))
    codes, x = [value % 16 for value in listed(u)], listed(quads)
    sums = [
        [4 + sum(codes[4 * lane + k] * x[4 * t + k] for k in range(4)) for lane in range(F32_LANES)]
        for t in range(kernels.TILE)
    ]
    sums[1] = [value << 2 for value in sums[2]]
    assert out_i.tolist() == sums
    exact = [
        [math.exp(-abs(plain.f32(value * float(s)))) for value in row] for row, s in zip(sums, scales, strict=True)
    ]
    signed = [[value if value > 0.5 else -value for value in row] for row in exact]
    np.testing.assert_allclose(out_f, signed, rtol=3e-7)
    assert total == pytest.approx(sum(map(sum, exact)), rel=1e-6)


def test_atomics_lose_no_count() -> None:
    cells = np.zeros(16, np.int64)
    assert kernels.count_up(cells, 1) == 0
    turns = 20_000
    threads = [threading.Thread(target=kernels.count_up, args=(cells, turns)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cells[0] == 1 + 2 * turns


def test_ticks_go_forward() -> None:
    assert kernels.elapsed(1000) > 0 or TARGET.arch == "other"

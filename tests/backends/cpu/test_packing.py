"""Packed layouts: what goes in comes out, at every odd size; sizes are known from shapes."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.cpu.arena import Arena
from edgellm.backends.cpu.layout import LinearKind, LinearLayout, memory_group
from edgellm.backends.cpu.packing import PartView, layout_of, pack_linear, plan_linear, unpack_linear
from edgellm.errors import OutOfMemoryError, UsageError
from edgellm.formats import QuantizedTensor
from tests.backends.cpu.linears import nmse, random_weight


def packed(weight, bits: int = 16) -> tuple[np.ndarray, LinearLayout, float]:
    layout = layout_of(weight, bits)
    out = np.zeros(layout.nbytes, np.uint8)
    return out, layout, pack_linear(weight, out, layout)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize(
    ("rows", "inputs", "group_size"),
    [
        (16, 128, 128),
        (1, 16, 16),
        (5, 70, 32),
        (33, 200, 64),
        (47, 300, 128),
        (40, 520, 256),
        (18, 100, 100),
        (150, 4500, 128),
    ],
)
def test_a_packed_weight_is_the_dequantized_one_exactly(rows, inputs, group_size, bits, symmetric) -> None:
    weight = random_weight(rows, inputs, bits, group_size, symmetric=symmetric)
    out, layout, factor = packed(weight)
    assert layout.kind == (LinearKind.INT4 if bits <= 4 else LinearKind.INT8)
    assert layout.own_zeros is not symmetric or layout.rows * layout.groups == 1
    assert np.array_equal(unpack_linear(out, layout, factor), weight.dequantize())


def test_columns_stay_in_stored_order_under_a_permutation() -> None:
    weight = random_weight(20, 96, 4, 32, permuted=True)
    out, layout, factor = packed(weight)
    assert np.array_equal(unpack_linear(out, layout, factor), weight.dequantize()[:, weight.permutation])


def test_a_line_of_four_bit_codes_is_rows_by_eight_inputs() -> None:
    weight = random_weight(16, 32, 4, 32)
    out, layout, _ = packed(weight)
    (part,) = layout.parts()
    line = PartView(out, layout, part).lines[0, 1].copy().view(np.uint8).reshape(-1, 4)
    rows = weight.codes[: layout.lanes, 8:16]
    assert np.array_equal(line, rows[:, :4] | rows[:, 4:] << 4)


def test_groups_that_no_group_in_memory_divides_are_stored_dense() -> None:
    weight = random_weight(8, 48, 4, 24, permuted=True)
    out, layout, factor = packed(weight)
    assert layout.kind == LinearKind.F16
    assert nmse(unpack_linear(out, layout, factor), weight.dequantize()) < 1e-7


@pytest.mark.parametrize(
    ("group_size", "inputs", "expected"),
    [
        (128, 4096, 128),
        (256, 4096, 128),
        (96, 960, 32),
        (40, 400, None),
        (100, 100, 16),
        (4096, 4096, 128),
        (8, 64, None),
    ],
)
def test_groups_in_memory(group_size, inputs, expected) -> None:
    assert memory_group(group_size, inputs) == expected


@pytest.mark.parametrize("exponent", [-30, 0, 20])
def test_bfloat16_scales_and_weights_enter_exactly(exponent: int) -> None:
    rng = np.random.default_rng(1)
    words = rng.standard_normal((20, 64)).astype(np.float32) * np.float32(2.0**exponent)
    dense = (words.view(np.uint32) & 0xFFFF0000).view(np.float32)
    out, layout, factor = packed(dense)
    assert np.array_equal(unpack_linear(out, layout, factor), dense)
    base = random_weight(20, 64, 4, 32)
    weight = QuantizedTensor(base.codes, np.abs(dense[:, :2]).copy(), base.zeros, 4, 32)
    out, layout, factor = packed(weight)
    assert np.array_equal(unpack_linear(out, layout, factor), weight.dequantize())


@pytest.mark.parametrize("inputs", [64, 100, 256, 5000])
def test_eight_bits_from_dense_are_within_half_a_step(inputs: int) -> None:
    rng = np.random.default_rng(2)
    dense = (rng.standard_normal((37, inputs)) * 0.02).astype(np.float32)
    dense[3] = 0
    dense[4] *= 1e-7
    out, layout, factor = packed(dense, 8)
    found = unpack_linear(out, layout, factor)
    assert layout.kind == LinearKind.INT8
    steps = np.abs(dense).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - dense) <= 0.502 * steps + 2e-9).all()
    assert nmse(found, dense) < 5e-5


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_threads_pack_the_same_bytes(bits: int) -> None:
    rng = np.random.default_rng(4)
    weight = random_weight(90, 100, 4, 32) if bits == 4 else rng.standard_normal((90, 100)).astype(np.float32)
    out, layout, factor = packed(weight, 16 if bits == 4 else bits)
    by_three = np.zeros(layout.nbytes, np.uint8)
    assert pack_linear(weight, by_three, layout, threads=3) == factor
    assert np.array_equal(out, by_three)


@pytest.mark.parametrize(
    ("inputs", "group", "stretch"), [(2048, 128, 16), (2112, 64, 17), (4864, 128, 13), (11008, 128, 15)]
)
def test_long_rows_are_cut_evenly(inputs: int, group: int, stretch: int) -> None:
    layout = plan_linear(300, inputs, 4, group)
    parts = list(layout.parts())
    assert layout.stretch == stretch
    assert {part.last_block - part.first_block for part in parts} == ({19 % 8, 8} if inputs > 2048 else {19})
    ends = [part.offset + part.blocks * layout.piece_bytes(part.groups) for part in parts]
    assert [part.offset for part in parts] == [layout.head_bytes, *ends[:-1]]
    assert ends[-1] == layout.nbytes
    assert list(layout.parts(1, 2)) == [part for part in parts if part.first_block == 8] or inputs == 2048


def test_plans_know_sizes_from_shapes() -> None:
    weight = random_weight(50, 256, 4, 64)
    assert plan_linear(50, 256, 4, 64) == layout_of(weight)
    assert plan_linear(50, 256, 16).bits == 16
    bits = plan_linear(4096, 4096, 4, 128, own_zeros=False).nbytes * 8 / 4096**2
    assert bits == pytest.approx(4.125, abs=0.001)
    with pytest.raises(UsageError, match="bits"):
        plan_linear(4, 4, 12)
    with pytest.raises(UsageError, match="group"):
        LinearLayout(LinearKind.INT4, 4, 64, 48)
    with pytest.raises(UsageError, match="layout"):
        pack_linear(weight, np.zeros(8, np.uint8), layout_of(weight))


def test_an_arena_hands_out_aligned_bytes_once() -> None:
    arena = Arena(1000)
    assert arena.bytes.ctypes.data % 64 == 0
    first, second = arena.take(10), arena.put(np.arange(4, dtype=np.float32))
    assert (first, second) == (0, 64)
    assert arena.bytes[64:80].view(np.float32).tolist() == [0, 1, 2, 3]
    with pytest.raises(OutOfMemoryError, match="plan"):
        arena.take(900)
    with pytest.raises(OutOfMemoryError, match="no memory"):
        Arena(1 << 62)

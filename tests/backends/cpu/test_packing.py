"""Packed layouts: what goes in comes out, at every odd size; sizes are known from shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgellm.backends.cpu.arena import Arena
from edgellm.backends.cpu.layout import LinearKind, LinearLayout, memory_group
from edgellm.backends.cpu.packing import (
    PartView,
    dense_factor,
    factor_fits,
    layout_of,
    pack_linear,
    pack_rows,
    plan_linear,
    unpack_linear,
    write_head,
)
from edgellm.errors import OutOfMemoryError, UsageError
from edgellm.formats import (
    QuantizedTensor,
    awq,
    bfloat16_to_float32,
    compressed_tensors,
    float32_to_bfloat16,
    gptq,
)
from tests.backends.cpu.kernels import WITHOUT_JIT, cases
from tests.backends.cpu.linears import nmse, random_weight


def packed(weight, bits: int = 16) -> tuple[np.ndarray, LinearLayout, float]:
    layout = layout_of(weight, bits)
    out = np.zeros(layout.nbytes, np.uint8)
    return out, layout, pack_linear(weight, out, layout)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize(
    ("rows", "inputs", "group_size"),
    cases(
        (16, 128, 128),
        (1, 16, 16),
        (5, 70, 32),
        (33, 200, 64),
        (47, 300, 128),
        (40, 520, 256),
        (18, 100, 100),
        (150, 4500, 128),
        small=3,
    ),
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


@pytest.mark.parametrize("inputs", cases(64, 100, 256, 5000))
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


@pytest.mark.parametrize("inputs", cases(8, 32, 100, 2600, small=3))
def test_four_bits_from_dense_find_a_good_scale(inputs: int) -> None:
    rng = np.random.default_rng(3)
    dense = (rng.standard_normal((53, inputs)) * 0.02).astype(np.float32)
    dense[3] = 0
    dense[4] = np.abs(dense[4])
    out, layout, factor = packed(dense, 4)
    found = unpack_linear(out, layout, factor)
    assert (layout.kind, layout.group, layout.own_zeros) == (LinearKind.INT4, 32, False)
    assert not found[3].any()
    groups = np.zeros((53, layout.groups, 32), np.float32)
    groups.reshape(53, -1)[:, :inputs] = dense
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(2)[..., None], 2)
    steps = np.where(extreme == 0, 1, extreme / -8)
    naive = (np.clip(np.rint(groups / steps), -8, 7) * steps).reshape(53, -1)[:, :inputs]
    assert nmse(found, dense) < 0.97 * nmse(naive, dense) < 0.0085


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_rows_as_stored_pack_like_their_float32(dtype: str, bits: int) -> None:
    rng = np.random.default_rng(8)
    dense = rng.standard_normal((20, 70) if WITHOUT_JIT else (300, 2100)).astype(np.float32)
    stored = {"F32": dense, "F16": dense.astype(np.float16), "BF16": float32_to_bfloat16(dense)}[dtype]
    exact = bfloat16_to_float32(stored) if dtype == "BF16" else stored.astype(np.float32)
    expected, layout, factor = packed(exact, bits)
    found = np.zeros(layout.nbytes, np.uint8)
    write_head(found, layout)
    assert pack_rows(stored, dtype, found, layout, factor) == np.abs(exact).max()
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("exponent", [-40, -12, 0, 12, 60])
def test_weights_of_any_magnitude_pack_alike(exponent: int, bits: int) -> None:
    dense = np.random.default_rng(9).standard_normal((20, 64)).astype(np.float32)
    out, layout, factor = packed(dense, bits)
    scaled, _, scaled_factor = packed(np.ldexp(dense, exponent), bits)
    assert factor_fits(float(np.abs(dense).max()))
    expected = np.ldexp(unpack_linear(out, layout, factor), exponent)
    assert nmse(unpack_linear(scaled, layout, scaled_factor), expected) < 1e-7
    assert dense_factor(layout, float("inf")) == dense_factor(layout, 0.0)


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize(("rows", "inputs"), cases((16, 64), (48, 96), (160, 2144), small=1))
@pytest.mark.parametrize("name", ["gptq", "gptq 8 bits", "gptq 2 bits", "awq", "gemv", "compressed-tensors"])
def test_words_of_a_file_pack_like_their_codes(name: str, rows: int, inputs: int, permuted: bool) -> None:
    bits = {"gptq 8 bits": 8, "gptq 2 bits": 2}.get(name, 4)
    module = {"aw": awq, "ge": awq, "co": compressed_tensors}.get(name[:2], gptq)
    weight = random_weight(rows, inputs, bits, 32, permuted=permuted and module is not awq)
    weight = replace(weight, zeros=np.clip(weight.zeros, 1, (1 << bits) - 1).astype(np.int16))
    options = {"version": "gemv"} if name == "gemv" else {}
    tensors = module.pack(weight, **options)
    words = tensors.pop("weight_packed" if module is compressed_tensors else "qweight")
    if module is not awq:
        options["bits"] = bits
    stored = module.stored(tensors, words.copy, shape=weight.shape, group_size=32, **options)
    for part, whole in ((stored, stored.load()), (stored.rows(3, rows - 2), stored.rows(3, rows - 2).load())):
        expected, layout, factor = packed(whole)
        found, found_layout, found_factor = packed(part)
        assert (found_layout, found_factor) == (layout, factor)
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("inputs", "group", "stretch"),
    [(2048, 128, 16), (2112, 64, 11), (512, 32, 16), (896, 32, 14), (4864, 128, 13), (11008, 128, 15)],
)
def test_long_rows_are_cut_evenly(inputs: int, group: int, stretch: int) -> None:
    layout = plan_linear(300, inputs, 4, group)
    parts = list(layout.parts())
    assert layout.stretch == stretch
    assert {part.last_block - part.first_block for part in parts} == (
        {layout.blocks % 8, 8} if layout.groups > stretch else {layout.blocks}
    )
    ends = [part.offset + part.blocks * layout.piece_bytes(part.groups) for part in parts]
    assert [part.offset for part in parts] == [layout.head_bytes, *ends[:-1]]
    assert ends[-1] == layout.nbytes
    assert list(layout.parts(1, 2)) == [part for part in parts if part.first_block == 8] or layout.groups == stretch


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

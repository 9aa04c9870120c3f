"""The packed layout: sizes, the place of single codes, and the round trip of the packer that defines it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.backends.cuda.layout import LinearLayout, memory_group, plan_linear
from edgellm.backends.cuda.packing import pack_codes, pack_linear, pack_numbers, unpack_codes, unpack_linear
from edgellm.errors import UsageError
from tests.backends.cuda.weights import quantized

RNG = np.random.default_rng(7)


def test_sizes_of_a_weight_follow_from_its_shape() -> None:
    layout = plan_linear(40, 200, 4, 64)
    assert (layout.row_tiles, layout.padded_inputs, layout.steps, layout.groups) == (3, 256, 2, 4)
    assert layout.tiles_bytes == 48 * 256 // 2 == 4 * np.prod(layout.tiles_shape)
    assert (layout.scales_bytes, layout.zeros_bytes) == (48 * 4 * 2, 48 * 4)
    assert layout.scales_offset % 256 == layout.zeros_offset % 256 == layout.nbytes % 256 == 0
    assert plan_linear(40, 200, 8, 64).zeros_bytes == 48 * 4 * 2
    assert plan_linear(40, 200, 16).scales_bytes == 0


def test_a_nibble_stands_where_the_lane_of_the_tensor_core_looks() -> None:
    layout = LinearLayout(4, 16, 128)
    codes = np.zeros((16, 128), np.uint8)
    row, k = 8 + 3, 64 + 32 + 2 * 1 + 8 + 1  # g 3, upper row; tile 1, block 2, t 1, second half, odd
    codes[row, k] = 0xF
    tiles = pack_codes(layout, codes)
    (found,) = np.argwhere(tiles)
    assert tuple(found) == (0, 1, 0, 3 * 4 + 1, 2)
    turned = np.uint32(0xF << 28)  # nibble 7, turned left by 3
    assert tiles[tuple(found)] == np.uint32((int(turned) << 3 | int(turned) >> 29) & 0xFFFFFFFF)


def test_a_byte_and_a_half_stand_where_the_lane_looks() -> None:
    codes = np.zeros((16, 128), np.uint8)
    codes[3, 48 + 4 + 8] = 0xAB  # g 3, block 3, t 2, second half
    (found,) = np.argwhere(pack_codes(LinearLayout(8, 16, 128), codes))
    tile = pack_codes(LinearLayout(8, 16, 128), codes)
    assert tuple(found) == (0, 0, 1, 14, 2)
    assert tile[tuple(found)] == 0xAB00
    (found,) = np.argwhere(pack_numbers(LinearLayout(16, 16, 128), codes.astype(np.float16)))
    assert tuple(found) == (0, 0, 3, 14, 2)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([4, 8]), st.integers(1, 40), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_codes_come_back(bits: int, rows: int, inputs: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, inputs), np.uint8)
    layout = LinearLayout(bits, rows, inputs)
    back = unpack_codes(layout, pack_codes(layout, codes))
    np.testing.assert_array_equal(back[:rows, :inputs], codes)
    assert not back[rows:].any()
    assert not back[:, inputs:].any()


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(4, 16), (4, 32), (3, 64), (4, 128), (4, 1 << 20), (8, 48), (8, 128)])
def test_a_packed_weight_is_the_weight(bits: int, group: int, symmetric: bool, paired: bool) -> None:
    weights = [quantized(RNG, 20, 200, bits, group, symmetric) for _ in range(2)]
    packed = pack_linear(weights, paired=paired)
    assert packed.layout.own_zeros != symmetric
    np.testing.assert_array_equal(unpack_linear(packed), np.concatenate([w.dequantize() for w in weights]))


def test_float32_scales_enter_through_a_factor() -> None:
    weight = quantized(RNG, 20, 200, 4, 64, True, scale=1e-7)
    packed = pack_linear([weight])
    assert packed.factor < 1e-6
    np.testing.assert_array_equal(unpack_linear(packed), weight.dequantize())


@pytest.mark.parametrize(
    ("group", "inputs", "found"), [(48, 100, 16), (256, 512, 128), (100, 100, 128), (24, 96, None)]
)
def test_a_group_in_memory_divides_the_groups_of_the_file(group: int, inputs: int, found: int | None) -> None:
    assert memory_group(group, inputs) == found
    assert plan_linear(16, inputs, 4, group).bits == (16 if found is None else 4)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e5])
def test_dense_weights_keep_eleven_bits(scale: float) -> None:
    weight = (RNG.standard_normal((20, 200)) * scale).astype(np.float32)
    packed = pack_linear([weight])
    np.testing.assert_allclose(unpack_linear(packed), weight, rtol=2**-11, atol=scale * 1e-6)


@pytest.mark.parametrize(("bits", "bound"), [(8, 5e-5), (4, 1e-2)])
def test_dense_weights_can_be_quantized(bits: int, bound: float) -> None:
    weight = RNG.standard_normal((20, 200)).astype(np.float32)
    packed = pack_linear([weight], layout=plan_linear(20, 200, bits))
    error = unpack_linear(packed) - weight
    assert np.square(error).sum() < bound * np.square(weight).sum()


def test_weights_that_differ_are_refused() -> None:
    with pytest.raises(UsageError, match="bits or groups"):
        pack_linear([quantized(RNG, 16, 128, 4, 64, True), quantized(RNG, 16, 128, 4, 32, True)])
    with pytest.raises(UsageError, match="one shape"):
        pack_linear([quantized(RNG, 16, 128, 4, 64, True)], paired=True)
    with pytest.raises(UsageError, match="no such storage"):
        LinearLayout(5, 16, 128)
    with pytest.raises(UsageError, match="no such shape"):
        LinearLayout(4, 0, 128)

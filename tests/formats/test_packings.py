"""The packings: golden words made by hand, a slow loop as a second definition, and identities over drawn shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import ModelError, UsageError
from edgellm.formats import QuantizedTensor, awq, compressed_tensors, gptq
from edgellm.formats.bits import pack_bits, unpack_bits


def slow_pack(values: list[int], bits: int) -> list[int]:
    """Value k in bits k*bits .. of a stream of 32-bit words, one Python integer at a time."""
    stream = sum(value << (k * bits) for k, value in enumerate(values))
    words = -(-len(values) * bits // 32)
    return [(stream >> (32 * w)) & 0xFFFFFFFF for w in range(words)]


def quantized(draw, *, bits=None, asymmetric=True, act_order=True, step=32, low=0, high=None) -> QuantizedTensor:
    bits = draw(st.sampled_from(gptq.BITS)) if bits is None else bits
    out, inputs = (step * draw(st.integers(1, 3)) for _ in range(2))
    group_size = draw(st.sampled_from([16, 24, 32, 64, 128, inputs]))
    groups = -(-inputs // group_size)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = rng.integers(0, 1 << bits, (out, inputs), dtype=np.uint8)
    scales = rng.standard_normal((out, groups)).astype(draw(st.sampled_from([np.float16, np.float32])))
    zeros = np.full((out, groups), 1 << (bits - 1), np.int16)
    if asymmetric and draw(st.booleans()):
        zeros = rng.integers(low, (1 << bits) if high is None else high, (out, groups), dtype=np.int16)
    permutation = None
    if act_order and groups > 1 and draw(st.booleans()):
        # inputs within a group stand in rising order, as a stable sort of g_idx gives them
        order = rng.permutation(inputs)
        permutation = np.concatenate([np.sort(order[i : i + group_size]) for i in range(0, inputs, group_size)]).astype(
            np.int32
        )
        if np.array_equal(permutation, np.arange(inputs)):
            permutation = None
    return QuantizedTensor(codes, scales, zeros, bits, group_size, permutation)


def assert_same(a: QuantizedTensor, b: QuantizedTensor) -> None:
    assert (a.bits, a.group_size) == (b.bits, b.group_size)
    for name in ("codes", "scales", "zeros", "permutation"):
        one, two = getattr(a, name), getattr(b, name)
        assert (one is None) == (two is None), name
        if one is not None:
            np.testing.assert_array_equal(one, two, err_msg=name)
            assert one.dtype == two.dtype
            assert two.flags.c_contiguous
    np.testing.assert_array_equal(a.dequantize(), b.dequantize())


def slow_dequantize(q: QuantizedTensor) -> np.ndarray:
    out, inputs = q.shape
    weight = np.empty((out, inputs), np.float32)
    for o in range(out):
        for j in range(inputs):
            i = j if q.permutation is None else q.permutation[j]
            g = j // q.group_size
            weight[o, i] = np.float32(q.scales[o, g]) * np.float32(int(q.codes[o, j]) - int(q.zeros[o, g]))
    return weight


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_bits_against_a_slow_loop(data):
    bits = data.draw(st.integers(1, 8))
    values = data.draw(st.lists(st.integers(0, (1 << bits) - 1), max_size=70))
    words = pack_bits(np.array([values], np.uint8).reshape(1, -1), bits)
    assert words.dtype == np.int32
    assert words.view(np.uint32)[0].tolist() == slow_pack(values, bits)
    assert unpack_bits(words, bits, len(values))[0].tolist() == values


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_dequantize_against_a_slow_loop(data):
    q = quantized(data.draw, step=8)
    np.testing.assert_array_equal(q.dequantize(), slow_dequantize(q))


@given(st.data(), st.sampled_from([("gptq", False), ("gptq", True), ("gptq_v2", False)]))
@settings(max_examples=80, deadline=None)
def test_gptq_round_trip(data, rule):
    checkpoint_format, word_carry = rule
    within_field = checkpoint_format == "gptq" and not word_carry
    q = quantized(data.draw, low=1 if within_field else 0)
    tensors = gptq.pack(q, checkpoint_format=checkpoint_format, word_carry=word_carry)
    out, inputs = q.shape
    groups = q.scales.shape[1]
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "qweight": (inputs * q.bits // 32, out),
        "qzeros": (groups, out * q.bits // 32),
        "scales": (groups, out),
        "g_idx": (inputs,),
    }
    back = gptq.unpack(
        tensors, bits=q.bits, group_size=q.group_size, checkpoint_format=checkpoint_format, word_carry=word_carry
    )
    assert_same(q, back)


@given(st.data(), st.sampled_from(awq.VERSIONS))
@settings(max_examples=50, deadline=None)
def test_awq_round_trip(data, version):
    q = quantized(data.draw, bits=4, act_order=False, step=8)
    assert_same(q, awq.unpack(awq.pack(q, version=version), group_size=q.group_size, version=version))


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_compressed_tensors_round_trip(data):
    q = quantized(data.draw, step=data.draw(st.sampled_from([8, 32])))
    tensors = compressed_tensors.pack(q)
    assert tensors["weight_shape"].tolist() == list(q.shape)
    assert ("weight_zero_point" in tensors) != q.symmetric
    assert_same(q, compressed_tensors.unpack(tensors, bits=q.bits, group_size=q.group_size, in_features=q.shape[1]))


# Two output rows of eight inputs, written out by hand for every packing (reliability.md QT10).
ROW_0, ROW_1 = [1, 2, 3, 4, 5, 6, 7, 8], [15, 0, 14, 1, 13, 2, 12, 3]
EIGHT_ROWS = np.array([ROW_0, ROW_1] * 4, np.uint8)
GOLDEN = QuantizedTensor(
    codes=EIGHT_ROWS,
    scales=np.array([[0.5], [2.0]] * 4, np.float16),
    zeros=np.array([[1], [2], [3], [4], [5], [6], [7], [8]], np.int16),
    bits=4,
    group_size=8,
)


def words(*values: int) -> np.ndarray:
    return np.array(values, np.uint32).view(np.int32)


def test_gptq_golden_words():
    tensors = gptq.pack(GOLDEN)
    # a word goes down a column: input 0 in the lowest nibble
    np.testing.assert_array_equal(tensors["qweight"], words(*[0x87654321, 0x3C2D1E0F] * 4).reshape(1, 8))
    np.testing.assert_array_equal(tensors["qzeros"], words(0x76543210).reshape(1, 1))  # minus one
    np.testing.assert_array_equal(gptq.pack(GOLDEN, checkpoint_format="gptq_v2")["qzeros"], words(0x87654321)[None])
    assert tensors["g_idx"].tolist() == [0] * 8


def test_awq_gemm_golden_words():
    tensors = awq.pack(GOLDEN)
    # a word goes along the outputs of one input, nibbles 0 2 4 6 1 3 5 7: rows 0, 2, 4, 6 then 1, 3, 5, 7
    expected = [0xFFFF1111, 0x00002222, 0xEEEE3333, 0x11114444, 0xDDDD5555, 0x22226666, 0xCCCC7777, 0x33338888]
    np.testing.assert_array_equal(tensors["qweight"], words(*expected).reshape(8, 1))
    np.testing.assert_array_equal(tensors["qzeros"], words(0x86427531).reshape(1, 1))


def test_awq_gemv_golden_words():
    tensors = awq.pack(GOLDEN, version="gemv")
    np.testing.assert_array_equal(tensors["qweight"], words(*[0x87654321, 0x3C2D1E0F] * 4).reshape(8, 1))
    # groups of less than 64: one zero point a row, padded to four words, and scales to 32 columns
    np.testing.assert_array_equal(tensors["qzeros"][:, 0], np.arange(1, 9))
    assert tensors["qzeros"].shape == (8, 4)
    assert not tensors["qzeros"][:, 1:].any()
    assert tensors["scales"].shape == (8, 32)


def test_compressed_tensors_golden_words():
    tensors = compressed_tensors.pack(GOLDEN)
    np.testing.assert_array_equal(tensors["weight_packed"], words(*[0x87654321, 0x3C2D1E0F] * 4).reshape(8, 1))
    np.testing.assert_array_equal(tensors["weight_zero_point"], words(0x87654321).reshape(1, 1))  # down the outputs


def test_gptq_three_bit_golden_words():
    """32 values in three words, the 11th and the 22nd across a border."""
    values = np.array([[k % 8 for k in range(32)]] * 32, np.uint8)
    q = QuantizedTensor(values, np.ones((32, 1), np.float16), np.full((32, 1), 4, np.int16), 3, 32)
    column = gptq.pack(q)["qweight"][:, 0].view(np.uint32)
    ten = sum((k % 8) << (3 * k) for k in range(10))
    assert column[0] == ten | (10 % 8 & 3) << 30
    assert column[1] == (10 % 8) >> 2 | sum((k % 8) << (1 + 3 * (k - 11)) for k in range(11, 21)) | (21 % 8 & 1) << 31
    assert column[2] == (21 % 8) >> 1 | sum((k % 8) << (2 + 3 * (k - 22)) for k in range(22, 32))


def test_gptq_zero_points_that_borrow_from_their_neighbour():
    """GPTQModel stores words 0x87654320 - 0x11111111: field 0 held 0 and takes one from field 1."""
    tensors = {
        "qweight": np.zeros((1, 8), np.int32),
        "qzeros": words(0x87654320 - 0x11111111).reshape(1, 1),
        "scales": np.ones((1, 8), np.float16),
    }
    carried = gptq.unpack(tensors, bits=4, group_size=8, word_carry=True)
    assert carried.zeros[:, 0].tolist() == [0, 2, 3, 4, 5, 6, 7, 8]
    by_field = gptq.unpack(tensors, bits=4, group_size=8)
    assert by_field.zeros[:, 0].tolist() == [16, 1, 3, 4, 5, 6, 7, 8]


def test_compressed_tensors_three_bits_padded_and_dense():
    """Before 0.19: ten codes and two spare bits a word; 256 inputs fill 26 words instead of 24."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 8, (2, 256), dtype=np.uint8)
    padded = [
        [sum(int(c) << (3 * k) for k, c in enumerate(row[i : i + 10])) for i in range(0, 256, 10)] for row in codes
    ]
    q = QuantizedTensor(codes, np.ones((2, 2), np.float16), np.array([[1, 2], [3, 4]], np.int16), 3, 128)
    dense = compressed_tensors.pack(q)
    assert dense["weight_packed"].shape == (2, 24)
    old = {**dense, "weight_packed": np.array(padded, np.uint32).view(np.int32)}
    assert old["weight_packed"].shape == (2, 26)
    for tensors in (dense, old):
        assert_same(q, compressed_tensors.unpack(tensors, bits=3, group_size=128, in_features=256))


def test_compressed_tensors_three_bit_zero_points_padded():
    """32 zero points of a column in four words of ten, as 0.12 wrote them, instead of three dense ones."""
    codes = np.zeros((32, 32), np.uint8)
    zeros = (np.arange(32, dtype=np.int16) % 8).reshape(32, 1)
    q = QuantizedTensor(codes, np.ones((32, 1), np.float16), zeros, 3, 32)
    dense = compressed_tensors.pack(q)
    assert dense["weight_zero_point"].shape == (3, 1)
    column = [sum(int(z) << (3 * k) for k, z in enumerate(zeros[i : i + 10, 0])) for i in range(0, 32, 10)]
    old = {
        **dense,
        "weight_packed": np.zeros((32, 4), np.int32),
        "weight_zero_point": np.array(column, np.uint32).view(np.int32).reshape(4, 1),
    }
    assert_same(q, compressed_tensors.unpack(old, bits=3, group_size=32, in_features=32))


def test_compressed_tensors_int8():
    tensors = {
        "weight": np.array([[-128, 0, 127, 5]], np.int8),
        "weight_scale": np.array([[0.5]], np.float32),
        "weight_zero_point": np.array([[3]], np.int8),
    }
    q = compressed_tensors.unpack_int8(tensors, group_size=-1)
    assert q.dequantize().tolist() == [[-65.5, -1.5, 62.0, 1.0]]
    del tensors["weight_zero_point"]
    assert compressed_tensors.unpack_int8(tensors, group_size=-1).dequantize().tolist() == [[-64, 0, 63.5, 2.5]]


def test_compressed_tensors_scale_of_the_whole_tensor():
    tensors = {"weight_packed": words(0x87654321, 0x3C2D1E0F).reshape(2, 1), "weight_scale": np.array([2], np.float32)}
    q = compressed_tensors.unpack(tensors, bits=4, group_size=-1, in_features=8)
    np.testing.assert_array_equal(q.dequantize(), (np.array([ROW_0, ROW_1]) - 8) * 2)


@pytest.mark.parametrize(
    ("g_idx", "message"),
    [
        ([0, 0, 1, 2], "does not exist"),
        ([0, 0, 1, -1], "does not exist"),
        ([0, 1, 1, 1], "not full"),
        ([0, 1, 0], "wrong shape"),
        ([[0, 1], [0, 1]], "wrong shape"),
    ],
)
def test_a_g_idx_that_cannot_be(g_idx, message):
    with pytest.raises(ModelError, match=message):
        gptq.act_order(np.array(g_idx, np.int32), 4, 2)


@pytest.mark.parametrize(
    ("g_idx", "expected"), [([0, 0, 1, 1], None), ([0, 0, 0, 0], None), ([1, 0, 1, 0], [1, 3, 0, 2])]
)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_a_g_idx_that_can_be(g_idx, expected, dtype):
    order = gptq.act_order(np.array(g_idx, dtype), 4, 2)
    assert (None if order is None else order.tolist()) == expected


def test_a_last_group_that_is_short():
    order = gptq.act_order(np.array([1, 0, 0], np.int32), 3, 2)
    assert order.tolist() == [1, 2, 0]
    with pytest.raises(ModelError, match="not full"):
        gptq.act_order(np.array([1, 0, 1], np.int32), 3, 2)


def test_packings_refuse_what_they_cannot_hold():
    zero = QuantizedTensor(EIGHT_ROWS, GOLDEN.scales, np.zeros((8, 1), np.int16), 4, 8)
    with pytest.raises(UsageError, match="zeros"):
        gptq.pack(zero)
    sixteen = QuantizedTensor(EIGHT_ROWS, GOLDEN.scales, np.full((8, 1), 16, np.int16), 4, 8)
    for pack in (awq.pack, compressed_tensors.pack, lambda q: gptq.pack(q, checkpoint_format="gptq_v2")):
        with pytest.raises(UsageError, match="zero"):
            pack(sixteen)
    with pytest.raises(UsageError, match="shape"):
        gptq.pack(QuantizedTensor(EIGHT_ROWS[:4], GOLDEN.scales[:4], GOLDEN.zeros[:4], 4, 8))
    with pytest.raises(UsageError, match="checkpoint_format"):
        gptq.pack(GOLDEN, checkpoint_format="marlin")
    with pytest.raises(UsageError, match="version"):
        awq.pack(GOLDEN, version="gemv_fast")


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 9},
        {"group_size": 0},
        {"group_size": 4},
        {"scales": np.ones((8, 1), np.float64)},
        {"zeros": np.ones((8, 1), np.int8)},
        {"permutation": np.arange(7, dtype=np.int32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_quantized_tensor_whose_parts_do_not_fit(change):
    parts = {name: getattr(GOLDEN, name) for name in ("codes", "scales", "zeros", "bits", "group_size", "permutation")}
    with pytest.raises(UsageError):
        QuantizedTensor(**{**parts, **change})


def test_edges_all_zero_group_and_fewer_inputs_than_a_group():
    codes = np.full((8, 8), 8, np.uint8)
    q = QuantizedTensor(codes, np.zeros((8, 1), np.float16), np.full((8, 1), 8, np.int16), 4, 128)
    assert not q.dequantize().any()
    assert q.symmetric
    assert q.nbytes == 64 + 16 + 16
    for back in (gptq.unpack(gptq.pack(q), bits=4, group_size=128), awq.unpack(awq.pack(q), group_size=128)):
        assert_same(q, back)

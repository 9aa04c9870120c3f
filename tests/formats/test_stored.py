"""Weights whose codes stay in the file: where each code lies, in every packing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgellm.errors import ModelError, UsageError
from edgellm.formats import QuantizedTensor, StoredTensor, awq, compressed_tensors, gptq
from edgellm.formats.stored import CodePlaces


def random_weight(rows: int, inputs: int, bits: int, group_size: int) -> QuantizedTensor:
    rng = np.random.default_rng((rows, inputs, bits))
    groups = (rows, -(-inputs // group_size))
    codes = rng.integers(0, 1 << bits, (rows, inputs), dtype=np.uint8)
    scales = rng.random(groups).astype(np.float16)
    return QuantizedTensor(codes, scales, rng.integers(1, 1 << bits, groups).astype(np.int16), bits, group_size)


def act_ordered(weight: QuantizedTensor) -> QuantizedTensor:
    order = np.random.default_rng(5).permutation(weight.shape[1]).astype(np.int32)
    grouped = np.concatenate([np.sort(part) for part in np.split(order, range(weight.group_size, len(order), 32))])
    return replace(weight, permutation=grouped.astype(np.int32))


def stored(name: str, weight: QuantizedTensor) -> StoredTensor:
    """The weight in a packing, opened."""
    module = {"gptq": gptq, "awq": awq, "gemv": awq, "compressed-tensors": compressed_tensors}[name]
    options = {"version": "gemv"} if name == "gemv" else {}
    tensors = module.pack(weight, **options)
    words = tensors.pop("weight_packed" if name == "compressed-tensors" else "qweight")
    if module is not awq:
        options["bits"] = weight.bits
    return module.stored(tensors, words.copy, shape=weight.shape, group_size=weight.group_size, **options)


CASES = [
    *((name, bits) for name in ("gptq", "compressed-tensors") for bits in (2, 4, 8)),
    ("awq", 4),
    ("gemv", 4),
]


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_a_stored_weight_is_the_unpacked_one(name: str, bits: int) -> None:
    weight = random_weight(48, 96, bits, 32)
    opened = stored(name, weight)
    found = opened.load()
    assert opened.shape == weight.shape
    assert opened.word_bytes == weight.codes.size * bits // 8
    for part in ("codes", "scales", "zeros"):
        assert np.array_equal(getattr(found, part), getattr(weight, part))


@pytest.mark.parametrize("name", ["gptq", "compressed-tensors"])
def test_act_order_comes_as_the_unpacked_permutation(name: str) -> None:
    weight = act_ordered(random_weight(16, 96, 4, 32))
    found = stored(name, weight).load()
    assert np.array_equal(found.permutation, weight.permutation)
    assert np.array_equal(found.codes, weight.codes)


@pytest.mark.parametrize("name", ["gptq", "awq", "gemv", "compressed-tensors"])
def test_rows_of_a_stored_weight(name: str) -> None:
    weight = random_weight(48, 96, 4, 32)
    found = stored(name, weight).rows(11, 30).load()
    assert np.array_equal(found.dequantize(), weight.dequantize()[11:30])


def test_what_does_not_fit_is_refused() -> None:
    weight = random_weight(32, 96, 4, 32)
    opened = stored("gptq", weight)
    with pytest.raises(UsageError, match="places"):
        replace(opened, scales=opened.scales[:, :1])
    with pytest.raises(UsageError, match="places"):
        StoredTensor(opened.read_words, CodePlaces.along_columns(32, 96, 4), 0, opened.scales, opened.zeros, 3, 32)
    tensors = gptq.pack(weight) | {"g_idx": np.full(96, 7, np.int32)}
    with pytest.raises(ModelError, match="g_idx"):
        gptq.stored(tensors, lambda: tensors["qweight"], shape=(32, 96), bits=4, group_size=32)

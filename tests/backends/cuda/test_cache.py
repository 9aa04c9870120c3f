"""Slots on the device: copied, exported and imported as the reference's are."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.cuda.cache import CudaCache, cache_nbytes
from edgellm.backends.cuda.device import open_device
from edgellm.backends.cuda.stream import Stream
from edgellm.backends.reference.cache import ReferenceCache
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.errors import ModelError, OutOfMemoryError, UsageError

STATES = [SlotState(1, end=5), SlotState(1, sinks=2, evicted=3, end=14), SlotState(1, sinks=2, end=12)]


def make(dtype: str, head_dim: int = 12, windows=(None, 4)) -> tuple[CudaCache, ReferenceCache]:
    geometry = CacheGeometry(12, windows, 2, head_dim, 3, dtype)
    device = open_device(0)
    return CudaCache(device, Stream(device), geometry, 3), ReferenceCache(geometry, 3)


def filled(reference: ReferenceCache, state: SlotState, seed: int = 0) -> dict[str, np.ndarray]:
    """What a reference cache exports of a slot in which every row has been written."""
    rng = np.random.default_rng(seed)
    for layer in range(2):
        for number in range(state.end):
            before = SlotState(state.slot, state.sinks, 0, number)
            keys, values = rng.normal(size=(2, 1, 2, reference.geometry.head_dim)).astype(np.float32)
            reference.write(layer, before, keys, values)
    return reference.export_slot(state)


@pytest.mark.parametrize("state", STATES, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_what_goes_in_comes_out(dtype, state, fake_gpu):
    fake_gpu(80)
    cache, reference = make(dtype)
    tensors = filled(reference, state)
    cache.import_slot(state, tensors)
    found = cache.export_slot(state)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_a_copied_slot_is_the_same_and_the_others_stay(fake_gpu):
    fake_gpu(80)
    cache, reference = make("int8")
    state, other = STATES[0], SlotState(0, end=5)
    tensors, others = filled(reference, state), filled(reference, other, 1)
    cache.import_slot(state, tensors)
    cache.import_slot(other, others)
    cache.copy_slot(state, 2)
    for slot, expected in ((0, others), (1, tensors), (2, tensors)):
        found = cache.export_slot(SlotState(slot, end=5))
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name], tensor)


def test_tensors_of_another_cache_are_refused(fake_gpu):
    fake_gpu(80)
    cache, reference = make("float16")
    state = STATES[0]
    tensors = filled(reference, state)
    name = "layers.1.values"
    for wrong, match in (
        ({}, "found nothing"),
        ({**tensors, name: tensors[name][:-1]}, r"found float16 \[3, 2, 12\]|found float16 \[4, 2, 12\]"),
        ({**tensors, name: tensors[name].astype(np.float32)}, "found float32"),
        ({**tensors, name: np.full_like(tensors[name], np.nan)}, "NaN"),
    ):
        with pytest.raises(ModelError, match=match):
            cache.import_slot(state, wrong)


def test_sizes_are_known_before(fake_gpu):
    fake_gpu(80)
    for dtype in ("float16", "int8"):
        cache, _ = make(dtype)
        assert cache_nbytes(cache.geometry, 3) <= cache.nbytes
    with pytest.raises(UsageError, match=r"cache_dtype: .* no such kind of cache; found float32"):
        make("float32")


def test_a_full_device(fake_gpu):
    fake = fake_gpu(80)
    open_device(0)
    fake.fail("cuMemAlloc_v2", 2)
    with pytest.raises(OutOfMemoryError, match="of the cache"):
        make("float16")

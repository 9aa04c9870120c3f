"""The CPU's cache: what it stores, copies, hands out and takes back."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.backends.cpu.cache import CpuCache, cache_nbytes
from edgellm.backends.reference import ops
from edgellm.backends.reference.cache import ReferenceCache, quantize_heads
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.errors import ModelError, OutOfMemoryError
from edgellm.model.rope import Rope
from tests.backends.cpu.attending import Layers
from tests.backends.cpu.kernels import THREADS, cases, nmse

ROPE = Rope(10000.0, 8)
DTYPES = ("float32", "float16", "int8")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", cases(8, 20, 64, 80, 128))
def test_what_is_stored_is_what_the_reference_stores_of_turned_keys(dtype: str, head_dim: int) -> None:
    geometry = CacheGeometry(70, (None, 9), 2, head_dim, 40, dtype)
    state = SlotState(1, sinks=2, evicted=11, end=60)
    contents = []
    for nth in cases(*THREADS, small=1):
        layers = Layers(geometry, 2, 2, ROPE)
        _, k, v = drawn = layers.draw(20)
        layers.run([(state, 20)], drawn, nth)
        contents.append(layers.cache.data.copy())
    assert all((other == contents[0]).all() for other in contents)
    cos, sin = ROPE.cos_sin(np.arange(60, 80))
    stored = layers.cache.export_slot(state.extended(20))
    for layer in (0, 1):
        for name, new in (("keys", ops.rope(k[layer], cos, sin)), ("values", v[layer])):
            found = stored[f"layers.{layer}.{name}"][-9:]
            assert found.dtype == geometry.dtype
            if dtype == "int8":
                codes, scales = quantize_heads(new)
                found_scales = stored[f"layers.{layer}.{name}_scales"][-9:]
                assert np.abs(found.astype(int) - codes[-9:]).max() <= (1 if name == "keys" else 0)
                np.testing.assert_allclose(found_scales, scales[-9:], rtol=1e-6)
            else:
                assert nmse(found, new[-9:].astype(dtype)) < 1e-8
                assert name == "keys" or (found == new[-9:].astype(dtype)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_exports_have_the_references_names_and_shapes_and_come_back(dtype: str) -> None:
    geometry = CacheGeometry(40, (None, 6), 3, 20, 4, dtype)
    state = SlotState(0, sinks=3, evicted=30, end=65)
    cache, reference, rng = CpuCache(geometry, 2), ReferenceCache(geometry, 2), np.random.default_rng(0)
    cache.data[:] = rng.integers(0, 60, cache.data.size)  # as float16 and float32 small and finite
    exported = cache.export_slot(state)
    expected = reference.export_slot(state)
    assert {n: (a.shape, a.dtype) for n, a in exported.items()} == {n: (a.shape, a.dtype) for n, a in expected.items()}
    assert all(array.flags.c_contiguous for array in exported.values())
    other = CpuCache(geometry, 3)
    moved = SlotState(2, sinks=3, evicted=30, end=65)
    other.import_slot(moved, exported)
    again = other.export_slot(moved)
    assert all((again[name] == array).all() for name, array in exported.items())
    other.copy_slot(moved, 0)
    copied = other.export_slot(state)
    assert all((copied[name] == array).all() for name, array in exported.items())
    assert all((array == 0).all() for array in other.export_slot(SlotState(1, end=40)).values())


def test_a_slot_that_goes_on_after_export_and_import_computes_the_same() -> None:
    geometry = CacheGeometry(64, (None,), 2, 16, 30, "float16")
    layers, state = Layers(geometry, 4, 2, ROPE), SlotState(0)
    layers.run([(state, 30)], layers.draw(30))
    state = state.extended(30)
    there = SlotState(1, end=30)
    layers.cache.import_slot(there, layers.cache.export_slot(state))
    drawn = layers.draw(1)
    here = layers.run([(state, 1)], drawn)
    assert (layers.run([(there, 1)], drawn) == here).all()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layers.0.keys", lambda a: None),
        ("layers.0.keys", lambda a: a[1:]),
        ("layers.0.values", lambda a: a.astype(np.float32)),
        ("layers.0.values", lambda a: np.full_like(a, np.nan)),
        ("layers.0.keys", lambda a: np.full_like(a, np.inf)),
    ],
)
def test_what_is_not_this_caches_is_refused(name: str, change) -> None:
    cache, state = CpuCache(CacheGeometry(16, (None,), 1, 8, 4, "float16"), 1), SlotState(0, end=9)
    tensors = cache.export_slot(state)
    tensors[name] = change(tensors[name])
    with pytest.raises(ModelError, match=name):
        cache.import_slot(state, tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_are_known_beforehand_and_lines_are_whole(dtype: str) -> None:
    geometry = CacheGeometry(1024, (None, 100), 4, 64, 28, dtype)
    cache = CpuCache(geometry, 3)
    assert cache.nbytes == cache.data.nbytes == cache_nbytes(geometry, 3)
    assert cache.data.ctypes.data % 64 == 0
    assert (cache.layout % 64 == 0).all()
    # 1024 rows are whole chunks; of the window's 127 rows one is padding
    assert geometry.slot_nbytes * 3 <= cache.nbytes <= geometry.slot_nbytes * 3 * 1.001


def test_too_large_a_cache_is_a_clear_error() -> None:
    with pytest.raises(OutOfMemoryError, match="cache"):
        CpuCache(CacheGeometry(1 << 40, (None,) * 8, 64, 128, 4, "float32"), 64)

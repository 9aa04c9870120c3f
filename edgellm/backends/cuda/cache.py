"""Keys and values on the device, laid out as `kernels/cache_layout.py` says, exported as the reference exports them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.backends.cuda.device import Device
from edgellm.backends.cuda.kernels.cache_layout import STORAGE_BYTES, depth_of, layer_nbytes
from edgellm.backends.cuda.memory import Pool
from edgellm.backends.cuda.stream import Stream
from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.errors import ModelError, UsageError


@dataclass(frozen=True)
class LayerCache:
    """Where a layer's arrays lie: `keys`, `values` and, of int8, their scales (else 0); `rows` a slot."""

    keys: int
    values: int
    key_scales: int
    value_scales: int
    rows: int


@dataclass(frozen=True)
class CachePlaces:
    """What launches need of a cache: its geometry and where each layer's arrays lie. Holds no memory itself."""

    geometry: CacheGeometry
    layers: tuple[LayerCache, ...]


class CudaCache:
    """See `interface.Cache`.

    Attributes:
        geometry: of the cache.
        num_slots: slots.
        places: where each layer's arrays lie.
        nbytes: of device memory held.
        steps: what the runner made ready for this cache, launches with its addresses in them; None until it did.

    Raises:
        OutOfMemoryError: the device has no memory for it.
        UsageError: a kind of storage that it has not.
    """

    def __init__(self, device: Device, stream: Stream, geometry: CacheGeometry, num_slots: int) -> None:
        check_dtype(geometry.dtype)
        self.geometry = geometry
        self.num_slots = num_slots
        self.steps: Any = None
        self._device, self._stream = device, stream
        self._pool = Pool(device, "the cache")
        layers = tuple(self._allocate(layer) for layer in range(len(geometry.windows)))
        self.places = CachePlaces(geometry, layers)
        self.nbytes = self._pool.nbytes

    def copy_slot(self, source: SlotState, target: int) -> None:
        """Copy what slot `source.slot` holds into slot `target`."""
        with self._device:
            for array in self._arrays():
                size = array.slot_nbytes
                self._stream.copy(array.address + target * size, array.address + source.slot * size, size)
            self._stream.wait()

    def export_slot(self, state: SlotState) -> dict[str, np.ndarray]:
        """What the slot keeps, by name `layers.N.keys` ..., in token order; of sliding layers what is still there.

        Names, shapes and dtypes are the reference cache's, but keys are turned by their tokens' numbers, as the CPU
        backend's are.
        """
        exported = {}
        for array in self._arrays():
            held = self._download(array, state.slot)[:, self._held_rows(array.layer, state)]
            exported[array.name] = np.ascontiguousarray(np.moveaxis(array.without_padding(held), 0, 1))
        return exported

    def import_slot(self, state: SlotState, tensors: Mapping[str, np.ndarray]) -> None:
        """Fill slot `state.slot` with what `export_slot` gave for the same state. Raises `ModelError` at a mismatch."""
        for array in self._arrays():
            rows = self._held_rows(array.layer, state)
            stored = tensors.get(array.name)
            array.check(stored, len(rows))
            whole = self._download(array, state.slot)
            array.without_padding(whole)[:, rows] = np.moveaxis(stored, 0, 1)
            if array.depth:
                whole[:, rows, self.geometry.head_dim :] = 0
            with self._device:
                self._stream.upload(array.address + state.slot * array.slot_nbytes, whole)
                self._stream.wait()

    def _allocate(self, layer: int) -> LayerCache:
        geometry, rows = self.geometry, self.geometry.rows(layer)
        heads = geometry.num_key_value_heads
        nbytes, scales = layer_nbytes(geometry.dtype, self.num_slots, heads, rows, geometry.head_dim)
        places = [self._pool.allocate(nbytes), self._pool.allocate(nbytes)]
        places += [self._pool.allocate(scales) if scales else 0 for _ in range(2)]
        return LayerCache(*places, rows)

    def _held_rows(self, layer: int, state: SlotState) -> np.ndarray:
        return self.geometry.row_of(layer, state, state.numbers(oldest=self.geometry.oldest_held(layer, state)))

    def _arrays(self) -> Iterator[_Array]:
        for number, layer in enumerate(self.places.layers):
            for kind, address in (("keys", layer.keys), ("values", layer.values)):
                yield _Array(f"layers.{number}.{kind}", number, address, self.geometry, layer.rows, self.geometry.dtype)
            if layer.key_scales:
                for kind, address in (("keys_scales", layer.key_scales), ("values_scales", layer.value_scales)):
                    yield _Array(f"layers.{number}.{kind}", number, address, self.geometry, layer.rows, None)

    def _download(self, array: _Array, slot: int) -> np.ndarray:
        whole = np.empty(array.slot_shape, array.numpy_dtype)
        with self._device:
            self._stream.download(whole, array.address + slot * array.slot_nbytes)
            self._stream.wait()
        return whole


@dataclass(frozen=True)
class _Array:
    """One of a layer's arrays; `storage` is None for scales."""

    name: str
    layer: int
    address: int
    geometry: CacheGeometry
    rows: int
    storage: str | None

    @property
    def numpy_dtype(self) -> np.dtype:
        return np.dtype(self.storage or np.float32)

    @property
    def depth(self) -> int:
        """Elements of a row, padding counted; 0 of scales, which have no such axis."""
        return 0 if self.storage is None else depth_of(self.geometry.head_dim)

    @property
    def slot_shape(self) -> tuple[int, ...]:
        heads = (self.geometry.num_key_value_heads, self.rows)
        return (*heads, self.depth) if self.depth else heads

    @property
    def slot_nbytes(self) -> int:
        return int(np.prod(self.slot_shape)) * self.numpy_dtype.itemsize

    def without_padding(self, whole: np.ndarray) -> np.ndarray:
        return whole[..., : self.geometry.head_dim] if self.depth else whole

    def check(self, stored: np.ndarray | None, tokens: int) -> None:
        heads, head_dim = self.geometry.num_key_value_heads, self.geometry.head_dim
        shape = (tokens, heads, head_dim) if self.depth else (tokens, heads)
        if stored is None or stored.dtype != self.numpy_dtype or stored.shape != shape:
            found = "nothing" if stored is None else f"{stored.dtype} {list(stored.shape)}"
            allowed = f"{self.numpy_dtype} {list(shape)}"
            raise ModelError("not this cache's", key=self.name, found=found, allowed=allowed)
        if stored.dtype.kind == "f" and not np.isfinite(stored).all():
            raise ModelError("holds NaN or infinity", key=self.name)


def check_dtype(dtype: str) -> None:
    """Raises `UsageError` for a kind of storage that the device has not."""
    if dtype not in STORAGE_BYTES:
        what, allowed = "the CUDA backend has no such kind of cache", ", ".join(STORAGE_BYTES)
        raise UsageError(what, key="cache_dtype", found=dtype, allowed=allowed)


def cache_nbytes(geometry: CacheGeometry, num_slots: int) -> int:
    """Bytes that a `CudaCache` takes, but for the rest of the last block."""
    check_dtype(geometry.dtype)
    heads, total = geometry.num_key_value_heads, 0
    for layer in range(len(geometry.windows)):
        total += 2 * sum(layer_nbytes(geometry.dtype, num_slots, heads, geometry.rows(layer), geometry.head_dim))
    return total

"""Keys and values of the reference backend, stored as float32, float16, or int8 with a scale a head and token."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgellm.backends.slots import CacheGeometry, SlotState
from edgellm.errors import ModelError, OutOfMemoryError


class ReferenceCache:
    """One array a layer and kind, [slots, rows, KvH, Hd]; int8 has scales [slots, rows, KvH] beside it.

    Raises:
        OutOfMemoryError: the arrays cannot be allocated.
    """

    def __init__(self, geometry: CacheGeometry, num_slots: int) -> None:
        self.geometry = geometry
        self.nbytes = geometry.slot_nbytes * num_slots
        self._layers: list[dict[str, np.ndarray]] = []
        try:
            for layer in range(len(geometry.windows)):
                shape = (num_slots, geometry.rows(layer), geometry.num_key_value_heads, geometry.head_dim)
                arrays = {kind: np.zeros(shape, geometry.dtype) for kind in ("keys", "values")}
                if geometry.dtype == "int8":
                    arrays |= {f"{kind}_scales": np.zeros(shape[:3], np.float32) for kind in ("keys", "values")}
                self._layers.append(arrays)
        except MemoryError:
            raise OutOfMemoryError(f"no memory for a cache of {self.nbytes:,} bytes", hint="Lower context.") from None

    def write(self, layer: int, state: SlotState, keys: np.ndarray, values: np.ndarray) -> None:
        """Store the step's keys and values, float32 [T, KvH, Hd], behind what `state` keeps."""
        numbers = np.arange(state.end, state.end + len(keys))
        rows = self.geometry.row_of(layer, state, numbers)
        arrays = self._layers[layer]
        for kind, new in (("keys", keys), ("values", values)):
            if self.geometry.dtype == "int8":
                new, scales = quantize_heads(new)
                arrays[f"{kind}_scales"][state.slot, rows] = scales
            with np.errstate(over="ignore"):  # beyond float16 becomes infinity, which the logits will show
                arrays[kind][state.slot, rows] = new

    def read(self, layer: int, state: SlotState, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of the tokens `numbers`, float32 [N, KvH, Hd] each."""
        rows = self.geometry.row_of(layer, state, numbers)
        arrays = self._layers[layer]
        result = []
        for kind in ("keys", "values"):
            stored = arrays[kind][state.slot, rows].astype(np.float32)
            if self.geometry.dtype == "int8":
                stored *= arrays[f"{kind}_scales"][state.slot, rows][..., None]
            result.append(stored)
        return result[0], result[1]

    def copy_slot(self, source: SlotState, target: int) -> None:
        """Copy slot `source.slot` into slot `target`."""
        for arrays in self._layers:
            for array in arrays.values():
                array[target] = array[source.slot]

    def export_slot(self, state: SlotState) -> dict[str, np.ndarray]:
        """What the slot keeps, by name `layers.N.keys` ..., in token order; of sliding layers what is still there."""
        exported = {}
        for layer, arrays in enumerate(self._layers):
            rows = self.geometry.row_of(layer, state, self._held(layer, state))
            for name, array in arrays.items():
                exported[f"layers.{layer}.{name}"] = array[state.slot, rows]
        return exported

    def import_slot(self, state: SlotState, tensors: Mapping[str, np.ndarray]) -> None:
        """Fill slot `state.slot` with what `export_slot` gave for the same state. Raises `ModelError` at a mismatch."""
        for layer, arrays in enumerate(self._layers):
            rows = self.geometry.row_of(layer, state, self._held(layer, state))
            for name, array in arrays.items():
                key = f"layers.{layer}.{name}"
                stored = tensors.get(key)
                expected = (len(rows), *array.shape[2:])
                if stored is None or stored.dtype != array.dtype or stored.shape != expected:
                    found = "nothing" if stored is None else f"{stored.dtype} {list(stored.shape)}"
                    raise ModelError(
                        "not this cache's", key=key, found=found, allowed=f"{array.dtype} {list(expected)}"
                    )
                if stored.dtype.kind == "f" and not np.isfinite(stored).all():
                    raise ModelError("holds NaN or infinity", key=key)
                array[state.slot, rows] = stored

    def _held(self, layer: int, state: SlotState) -> np.ndarray:
        """Numbers of the kept tokens whose rows in `layer` have not been overwritten."""
        return state.numbers(oldest=self.geometry.oldest_held(layer, state))


def quantize_heads(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x float32 [T, KvH, Hd] as int8 of the same shape and float32 scales [T, KvH], x ~ int8 * scale, |int8| <= 127."""
    scales = (np.abs(x).max(axis=-1) / np.float32(127)).astype(np.float32)
    divisor = np.where(scales > 0, scales, np.float32(1))
    return np.rint(x / divisor[..., None]).astype(np.int8), scales

"""Tiles made on the device from what a file holds: uploaded as stored, packed by `kernels/pack.py`, forgotten."""

from __future__ import annotations

import numpy as np

from edgellm.backends.cuda.calls import KernelSet
from edgellm.backends.cuda.kernels.pack_kinds import KINDS, PLAIN
from edgellm.backends.cuda.layout import TILE_ROWS, LinearLayout
from edgellm.backends.cuda.memory import Pool
from edgellm.backends.cuda.stream import Stream
from edgellm.formats import QuantizedTensor, StoredTensor

_THREADS = 256
#: Warps of a block of `kernels/quantize.py`, each with a group.
_QUANTIZING_WARPS = 4
_KIND_OF = {"float16": "F16", "uint16": "BF16", "float32": "F32"}


class DevicePacker:
    """Packs sources, linears or pieces of them, into the tiles of matrices, one after the other.

    What is uploaded for a source shares one allocation, which grows to the largest and goes with `close`.
    """

    def __init__(self, stream: Stream, kernels: KernelSet) -> None:
        self._stream, self._kernels = stream, kernels
        self._pool = Pool(stream.device, "weights on their way")
        self._room = self._held = 0

    def codes(
        self,
        weight: StoredTensor | QuantizedTensor,
        layout: LinearLayout,
        tiles: int,
        first_row: int = 0,
        half: int = PLAIN,
    ) -> None:
        """The codes of a linear into tiles that hold zeros where it goes.

        Args:
            first_row: the slot of its first row.
            half: of a paired matrix: 0 for the gate, 1 for the up projection.
        """
        words, tables = _words_of(weight)
        rows, inputs = weight.shape
        places = self._upload([words, *tables])
        arguments = dict(zip(("words", "input_word", "input_shift", "row_word", "row_shift"), places, strict=True))
        arguments |= {"inputs": inputs, "stored_bits": weight.bits if isinstance(weight, StoredTensor) else 8}
        self._launch(f"pack_codes_w{layout.bits}", layout, tiles, rows, first_row, half, arguments)

    def numbers(
        self,
        numbers: np.ndarray,
        layout: LinearLayout,
        tiles: int,
        factor: float,
        first_row: int = 0,
        half: int = PLAIN,
    ) -> None:
        """Rows as stored, float32, float16 or uint16 for bfloat16, over `factor`; as `codes`."""
        rows, inputs = numbers.shape
        (source,) = self._upload([_whole_words(numbers)])
        arguments = {"source": source, "inputs": inputs, "kind": KINDS[_KIND_OF[numbers.dtype.name]]}
        self._launch("pack_numbers", layout, tiles, rows, first_row, half, {**arguments, "inverse": 1.0 / factor})

    def quantize(
        self, numbers: np.ndarray, layout: LinearLayout, tiles: int, scales: int, factor: float, first_row: int
    ) -> None:
        """Rows as stored, from a whole tile on, to codes and scales of a dense weight (`packing.quantize`)."""
        rows, inputs = numbers.shape
        (source,) = self._upload([_whole_words(numbers)])
        arguments = {
            "source": source,
            "tiles": tiles,
            "scales": scales,
            "rows": rows,
            "inputs": inputs,
            "steps": layout.steps,
            "first_tile": first_row // TILE_ROWS,
            "kind": KINDS[_KIND_OF[numbers.dtype.name]],
            "factor": factor,
            "inverse": 1.0 / factor,
        }
        function = self._kernels.function(f"quantize_w{layout.bits}g{layout.group}")
        grid = (-(-layout.groups // _QUANTIZING_WARPS), -(-rows // TILE_ROWS))
        with self._stream.device:
            function.prepare(grid, **arguments).run(self._stream)
            self._stream.wait()

    def close(self) -> None:
        """Give the room back."""
        self._pool.close()
        self._room = self._held = 0

    def _launch(
        self,
        name: str,
        layout: LinearLayout,
        tiles: int,
        rows: int,
        first_row: int,
        half: int,
        arguments: dict[str, int | float],
    ) -> None:
        first_tile, last_tile = first_row // TILE_ROWS, -(-(first_row + rows) // TILE_ROWS)
        if half != PLAIN:
            first_tile, last_tile = 0, layout.row_tiles
        row_words = layout.steps * 64 * layout.bits
        arguments |= {
            "tiles": tiles,
            "rows": rows,
            "steps": layout.steps,
            "first_tile": first_tile,
            "first_row": first_row,
            "half": half,
        }
        grid = (-(-row_words // _THREADS), last_tile - first_tile)
        with self._stream.device:
            self._kernels.function(name).prepare(grid, **arguments).run(self._stream)
            self._stream.wait()  # the room is free for the next

    def _upload(self, arrays: list[np.ndarray]) -> list[int]:
        """Where copies of the arrays lie until the next call."""
        sizes = [-(-array.nbytes // 256) * 256 for array in arrays]
        if sum(sizes) > self._room:
            self._pool.close()
            self._pool = Pool(self._stream.device, "weights on their way")
            self._room, self._held = sum(sizes), self._pool.allocate(sum(sizes))
        places = [self._held + sum(sizes[:number]) for number in range(len(sizes))]
        with self._stream.device:
            for place, array in zip(places, arrays, strict=True):
                self._stream.upload(place, array)
            self._stream.wait()
        return places


def largest_of(numbers: np.ndarray) -> float:
    """The largest magnitude of numbers as stored; infinity or NaN where one is not finite."""
    if numbers.dtype == np.float32:
        return float(np.abs(numbers).max(initial=0.0))
    # without its sign a 16-bit float orders as its bits do
    largest = np.uint16((numbers.view(np.uint16) & np.uint16(0x7FFF)).max(initial=0))
    if numbers.dtype == np.float16:
        return float(largest.view(np.float16))
    return float((np.uint32(largest) << np.uint32(16)).view(np.float32))


def _words_of(weight: StoredTensor | QuantizedTensor) -> tuple[np.ndarray, list[np.ndarray]]:
    """(words, tables of where codes lie in them), uint32; see `formats.stored.CodePlaces`."""
    if isinstance(weight, StoredTensor):
        places = weight.ordered_places()
        tables = (places.input_word, places.input_shift, places.row_word, places.row_shift)
        return np.ascontiguousarray(weight.read_words()).reshape(-1).view(np.uint32), [_u32(table) for table in tables]
    rows, inputs = weight.shape
    codes = np.zeros((rows, -(-inputs // 4) * 4), np.uint8)
    codes[:, :inputs] = weight.codes
    column, row = np.arange(inputs), np.arange(rows) * (codes.shape[1] // 4)
    tables = (column // 4, column % 4 * 8, row, np.zeros(rows))
    return codes.reshape(-1).view(np.uint32), [_u32(table) for table in tables]


def _whole_words(numbers: np.ndarray) -> np.ndarray:
    """The bytes of an array, padded to whole words, uint32."""
    flat = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)
    if len(flat) % 4:
        flat = np.concatenate([flat, np.zeros(4 - len(flat) % 4, np.uint8)])
    return flat.view(np.uint32)


def _u32(table: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(table, np.uint32)

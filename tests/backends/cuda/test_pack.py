"""Packing on the device is bit by bit what NumPy's packer does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from edgellm.backends.cuda.kernels.pack_kinds import KINDS, PLAIN
from edgellm.backends.cuda.layout import LinearLayout, plan_linear
from edgellm.backends.cuda.packing import pack_linear
from edgellm.formats import CodePlaces, QuantizedTensor
from tests.backends.cuda.launching import launch
from tests.backends.cuda.weights import quantized


@dataclass
class Source:
    """Codes as a file has them: words and the tables that find them."""

    words: np.ndarray
    places: CodePlaces
    bits: int

    @property
    def tables(self) -> dict[str, np.ndarray]:
        names = ("input_word", "input_shift", "row_word", "row_shift")
        return {name: getattr(self.places, name).astype(np.uint32) for name in names}


def stored(weight: QuantizedTensor, packing: str) -> Source:
    rows, inputs = weight.shape
    codes = weight.codes.astype(np.uint32)
    fields = 32 // weight.bits
    if packing == "columns":  # GPTQ
        parts = codes.reshape(rows, inputs // fields, fields) << (np.arange(fields, dtype=np.uint32) * weight.bits)
        return Source(
            parts.sum(-1, dtype=np.uint32).T.copy(), CodePlaces.along_columns(rows, inputs, weight.bits), weight.bits
        )
    if packing == "bytes":
        words = np.ascontiguousarray(weight.codes).view(np.uint32)
        return Source(words, CodePlaces.along_rows(rows, inputs, 8, inputs // 4), 8)
    shifts = np.array([0, 4, 1, 5, 2, 6, 3, 7], np.uint32) * 4  # AWQ: eight rows in a word
    words = (codes.reshape(rows // 8, 8, inputs) << shifts[:, None]).sum(1, dtype=np.uint32).T.copy()
    row = np.arange(rows)
    places = CodePlaces(
        np.arange(inputs) * (rows // 8), np.zeros(inputs, np.int64), row // 8, shifts[row % 8].astype(np.int64)
    )
    return Source(words, places, 4)


def pack(
    layout: LinearLayout, tiles: np.ndarray, source: Source, rows: int, first_row: int = 0, half: int = PLAIN
) -> None:
    words = tiles[0].size
    launch(
        f"pack_codes_w{layout.bits}",
        (-(-words // 256), layout.row_tiles),
        {
            "words": source.words,
            **source.tables,
            "tiles": tiles,
            "rows": rows,
            "inputs": layout.inputs,
            "steps": layout.steps,
            "first_tile": 0,
            "first_row": first_row,
            "half": half,
            "stored_bits": source.bits,
        },
        capability=75,
    )


@pytest.mark.parametrize(
    ("bits", "packing"),
    [(4, "columns"), (8, "columns"), (2, "columns"), (4, "rows of eight"), (3, "bytes"), (8, "bytes")],
)
def test_codes_of_any_packing(bits: int, packing: str) -> None:
    rng = np.random.default_rng(bits)
    weights = [quantized(rng, rows, 208, bits, 16, False) for rows in (24, 40)]  # the second begins within a tile
    packed = pack_linear(weights)
    tiles = np.zeros_like(packed.tiles)
    for weight, first_row in zip(weights, (0, 24), strict=True):
        pack(packed.layout, tiles, stored(weight, packing), weight.shape[0], first_row)
    np.testing.assert_array_equal(tiles, packed.tiles)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_pair_is_packed_by_halves(bits: int) -> None:
    rng = np.random.default_rng(bits)
    weights = [quantized(rng, 28, 144, bits, 16, True) for _ in range(2)]
    packed = pack_linear(weights, paired=True)
    tiles = np.zeros_like(packed.tiles)
    for half, weight in enumerate(weights):
        pack(packed.layout, tiles, stored(weight, "columns"), 28, half=half)
    np.testing.assert_array_equal(tiles, packed.tiles)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("paired", [False, True])
def test_numbers_of_any_storage(kind: str, paired: bool) -> None:
    rng = np.random.default_rng(3)
    weights = [rng.standard_normal((20, 130)).astype(np.float32) for _ in range(2)]
    if kind == "F16":
        kept = [weight.astype(np.float16) for weight in weights]
        weights = [weight.astype(np.float32) for weight in kept]
    elif kind == "BF16":
        kept = [(weight.view(np.uint32) >> 16).astype(np.uint16) for weight in weights]
        weights = [(weight.astype(np.uint32) << 16).view(np.float32) for weight in kept]
    else:
        kept = weights
    packed = pack_linear(weights, paired=paired)
    layout, tiles = packed.layout, np.zeros_like(packed.tiles)
    for number, source in enumerate(kept):
        launch(
            "pack_numbers",
            (-(-tiles[0].size // 256), layout.row_tiles),
            {
                "source": np.ascontiguousarray(source).reshape(-1).view(np.uint32),
                "tiles": tiles,
                "rows": 20,
                "inputs": 130,
                "steps": layout.steps,
                "first_tile": 0,
                "first_row": 0 if paired else 20 * number,
                "half": number if paired else PLAIN,
                "kind": KINDS[kind],
                "inverse": 1 / packed.factor,
            },
            capability=75,
        )
    np.testing.assert_array_equal(tiles, packed.tiles)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("bits", [8, 4])
def test_numbers_are_quantized(bits: int, size: float) -> None:
    rng = np.random.default_rng(bits)
    weight = (size * rng.standard_normal((41, 210))).astype(np.float32)
    weight[3] = 0
    layout = plan_linear(41, 210, bits)
    packed = pack_linear([weight], layout=layout)
    tiles, scales = np.full_like(packed.tiles, 0xAAAAAAAA), np.full_like(packed.scales, 0xAAAAAAAA)
    for first in (0, 32):  # pieces
        launch(
            f"quantize_w{bits}g{layout.group}",
            (-(-layout.groups // 4), 2 if first == 0 else 1),
            {
                "source": weight[first : first + 32].reshape(-1).view(np.uint32),
                "tiles": tiles,
                "scales": scales,
                "rows": min(32, 41 - first),
                "inputs": 210,
                "steps": layout.steps,
                "first_tile": first // 16,
                "kind": KINDS["F32"],
                "factor": packed.factor,
                "inverse": 1 / packed.factor,
            },
            capability=75,
        )
    np.testing.assert_array_equal(scales, packed.scales)
    np.testing.assert_array_equal(tiles, packed.tiles)

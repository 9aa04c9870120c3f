"""Quantized weights whose codes are still in the file: all that is small about a weight, and where each code lies.

A backend that packs weights anew reads the words once, as they are stored, and never holds a byte a code. Every packing
whose codes do not cross words is a table of four arrays:

    codes[r, j] = words[input_word[j] + row_word[r]] >> (input_shift[j] + row_shift[r]) & (2**bits - 1)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgellm.errors import UsageError
from edgellm.formats.bits import WORD_BITS
from edgellm.formats.quantized import QuantizedTensor, group_count

#: Bits of codes that do not cross words.
WHOLE_BITS = (2, 4, 8)


@dataclass(frozen=True)
class CodePlaces:
    """Where the codes of a weight [out, in] lie in its words; see the module's first lines.

    Attributes:
        input_word, input_shift: int64 [in], by the input's number in the file.
        row_word, row_shift: int64 [out].
        interleaved: whether a word holds codes of several rows: [in, out / 8] words of eight rows, which is AWQ's gemm.
    """

    input_word: np.ndarray
    input_shift: np.ndarray
    row_word: np.ndarray
    row_shift: np.ndarray

    @property
    def interleaved(self) -> bool:
        return bool(self.row_shift.any())

    @classmethod
    def along_columns(cls, rows: int, inputs: int, bits: int) -> CodePlaces:
        """A stream of codes down each column of words [in * bits / 32, out]: GPTQ."""
        word, shift = _stream(inputs, bits)
        return cls(word * rows, shift, np.arange(rows), np.zeros(rows, np.int64))

    @classmethod
    def along_rows(cls, rows: int, inputs: int, bits: int, width: int) -> CodePlaces:
        """A stream of codes along each row of words [out, width]: compressed-tensors, AWQ's gemv."""
        word, shift = _stream(inputs, bits)
        return cls(word, shift, np.arange(rows) * width, np.zeros(rows, np.int64))


def _stream(inputs: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    fields = WORD_BITS // bits
    index = np.arange(inputs)
    return index // fields, index % fields * bits


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A `QuantizedTensor` whose codes are in the file.

    Attributes:
        read_words: reads the words, int32, as they are stored. Raises `ModelError`, `OutOfMemoryError`.
        places: where in them the codes lie.
        word_bytes: size of the words.
        scales, zeros, bits, group_size, permutation: as in `QuantizedTensor`.
    """

    read_words: Callable[[], np.ndarray]
    places: CodePlaces
    word_bytes: int
    scales: np.ndarray
    zeros: np.ndarray
    bits: int
    group_size: int
    permutation: np.ndarray | None = None

    def __post_init__(self) -> None:
        rows, inputs = self.shape
        groups = (rows, group_count(inputs, self.group_size))
        if self.bits not in WHOLE_BITS or self.scales.shape != groups or self.zeros.shape != groups:
            found = f"{self.bits} bits, scales {self.scales.shape}, zeros {self.zeros.shape}"
            raise UsageError("does not fit the places", key="scales", found=found, allowed=str(groups))

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return len(self.places.row_word), len(self.places.input_word)

    def rows(self, first: int, last: int) -> StoredTensor:
        """The weight of the outputs first..last-1; it reads all words."""
        places = self.places
        part = CodePlaces(
            places.input_word, places.input_shift, places.row_word[first:last], places.row_shift[first:last]
        )
        scales, zeros = self.scales[first:last], self.zeros[first:last]
        return StoredTensor(
            self.read_words, part, self.word_bytes, scales, zeros, self.bits, self.group_size, self.permutation
        )

    def ordered_places(self) -> CodePlaces:
        """The places with inputs in the order of the codes' columns, the permuted one where there is one."""
        order, places = self.permutation, self.places
        if order is None:
            return places
        return CodePlaces(places.input_word[order], places.input_shift[order], places.row_word, places.row_shift)

    def load(self) -> QuantizedTensor:
        """The weight with its codes, 12 bytes a code for a moment. Raises what `read_words` raises."""
        places = self.ordered_places()
        words = self.read_words().reshape(-1).view(np.uint32)
        fields = words[places.input_word + places.row_word[:, None]]
        fields >>= (places.input_shift + places.row_shift[:, None]).astype(np.uint32)
        codes = (fields & np.uint32((1 << self.bits) - 1)).astype(np.uint8)
        return QuantizedTensor(codes, self.scales, self.zeros, self.bits, self.group_size, self.permutation)

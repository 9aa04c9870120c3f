"""The weights of a program as arrays that can be trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from edgellm.formats import QuantizedTensor
from edgellm.model import OpenedModel

BIAS = ".bias"


class Parameters:
    """Arrays by weight name; a linear's bias stands under `<name>.bias`.

    Args:
        arrays: by name; the names of a tied lm_head and of the embedding mean one array, under `embed_tokens`.
        tied: whether lm_head is the embedding.
    """

    def __init__(self, arrays: dict[str, np.ndarray], tied: bool) -> None:
        self.arrays = arrays
        self.tied = tied

    def name(self, weight: str) -> str:
        """The name that an array stands under: a tied lm_head's is the embedding's."""
        return "embed_tokens" if self.tied and weight == "lm_head" else weight

    def __getitem__(self, weight: str) -> np.ndarray:
        return self.arrays[self.name(weight)]

    def bias(self, weight: str) -> np.ndarray | None:
        """A linear's bias, None where it has none."""
        return self.arrays.get(weight + BIAS)

    @property
    def count(self) -> int:
        """Numbers in all arrays."""
        return sum(array.size for array in self.arrays.values())

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def zeros(self, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """An array of zeros for each of `names` (default: all), such as gradients are added to."""
        return {name: np.zeros_like(self.arrays[name]) for name in (self.arrays if names is None else names)}

    def of_layer(self, layer: int) -> list[str]:
        """Names of the arrays of a decoder layer."""
        return [name for name in self.arrays if name.startswith(f"layers.{layer}.")]

    def digest(self) -> str:
        """sha256 over names, shapes and values."""
        total = hashlib.sha256()
        for name in sorted(self.arrays):
            array = self.arrays[name]
            total.update(f"{name} {array.shape} {array.dtype}\n".encode())
            total.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
        return total.hexdigest()


def read_parameters(model: OpenedModel) -> Parameters:
    """Every weight of `model`, float32; packed linears are dequantized. Raises `ModelError`."""
    weights = model.weights
    tied = weights.lm_head_is_embedding
    arrays: dict[str, np.ndarray] = {}
    for name, spec in weights.program.weights.items():
        if spec.kind == "embedding":
            arrays[name] = weights.embedding()
        elif spec.kind == "vector":
            arrays[name] = weights.vector(name)
        elif not (tied and name == "lm_head"):
            weight = weights.linear(name)
            weight = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
            # a part of a fused tensor is a view of the whole; a copy lets go of the rest and can be written to
            arrays[name] = np.array(weight, np.float32)
            bias = weights.bias(name)
            if bias is not None:
                arrays[name + BIAS] = np.array(bias, np.float32)
    return Parameters(arrays, tied)

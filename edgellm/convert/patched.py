"""A checkpoint's weights with some of them replaced: quantized, folded, pruned, re-fitted."""

from __future__ import annotations

import numpy as np

from edgellm.errors import UsageError
from edgellm.formats import QuantizedTensor
from edgellm.model import Weights


class PatchedWeights:
    """What `Backend.load` reads of `Weights`, with replacements by name.

    Args:
        weights: what is read where nothing was replaced; fit for any part of its program.
    """

    def __init__(self, weights: Weights) -> None:
        self.source = weights
        self._replaced: dict[str, QuantizedTensor | np.ndarray] = {}
        self._biases: dict[str, np.ndarray] = {}

    @property
    def lm_head_is_embedding(self) -> bool:
        """Whether lm_head is the embedding: not once it was replaced by itself."""
        return self.source.lm_head_is_embedding and "lm_head" not in self._replaced

    def replace(self, name: str, weight: QuantizedTensor | np.ndarray) -> None:
        """Let `name` be `weight`: float32 of the program's shape, or of that shape quantized. Raises `UsageError`."""
        spec = self.source.program.weights.get(name)
        if spec is None or tuple(weight.shape) != spec.shape:
            allowed = "a weight of the program" if spec is None else str(list(spec.shape))
            raise UsageError("does not fit the program", key=name, found=list(weight.shape), allowed=allowed)
        self._replaced[name] = weight

    def replace_bias(self, name: str, bias: np.ndarray) -> None:
        """Let the bias of linear `name` be `bias`, float32 [out]."""
        self._biases[name] = bias

    def forget(self, prefix: str) -> None:
        """Drop the replacements whose names begin with `prefix`, once they are written or their block is done."""
        for table in (self._replaced, self._biases):
            for name in [name for name in table if name.startswith(prefix)]:
                del table[name]

    def embedding(self) -> np.ndarray:
        """As `Weights.embedding`."""
        return self._float("embed_tokens") if "embed_tokens" in self._replaced else self.source.embedding()

    def vector(self, name: str) -> np.ndarray:
        """As `Weights.vector`."""
        return self._float(name) if name in self._replaced else self.source.vector(name)

    def linear(self, name: str) -> QuantizedTensor | np.ndarray:
        """As `Weights.linear`."""
        return self._replaced[name] if name in self._replaced else self.source.linear(name)

    def bias(self, name: str) -> np.ndarray | None:
        """As `Weights.bias`."""
        return self._biases[name] if name in self._biases else self.source.bias(name)

    def float32(self, name: str) -> np.ndarray:
        """A linear's weight, float32 [out, in], dequantized where it is quantized."""
        weight = self.linear(name)
        return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight

    def _float(self, name: str) -> np.ndarray:
        weight = self._replaced[name]
        return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight

"""A checkpoint's weights with some of them replaced: quantized, folded, pruned, re-fitted."""

from __future__ import annotations

import numpy as np

from edgellm.errors import UsageError
from edgellm.formats import QuantizedTensor, bfloat16_to_float32, float32_to_bfloat16
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

    def replaced(self, name: str) -> bool:
        """Whether `name`, or its bias, is another than the checkpoint's."""
        return name in self._replaced or name in self._biases

    def forget(self, prefix: str) -> None:
        """Drop the replacements whose names begin with `prefix`, once they are written or their block is done."""
        for table in (self._replaced, self._biases):
            for name in [name for name in table if name.startswith(prefix)]:
                del table[name]

    def embedding(self) -> np.ndarray:
        """As `Weights.embedding`."""
        return self._float("embed_tokens") if "embed_tokens" in self._replaced else self.source.embedding()

    def embedding_rows(self, token_ids: np.ndarray) -> np.ndarray:
        """Rows of the embedding, float32 [n, hidden_size]."""
        if "embed_tokens" in self._replaced:
            return self._float("embed_tokens")[token_ids]
        name = self.source.file_name("embed_tokens") + ".weight"
        stored = self.source.checkpoint.read(name)[token_ids]
        is_bfloat16 = self.source.checkpoint.info(name).dtype == "BF16"
        return bfloat16_to_float32(stored) if is_bfloat16 else stored.astype(np.float32)

    def vector(self, name: str) -> np.ndarray:
        """As `Weights.vector`."""
        return self._float(name) if name in self._replaced else self.source.vector(name)

    def linear(self, name: str) -> QuantizedTensor | np.ndarray:
        """As `Weights.linear`; of an lm_head that is the embedding, the embedding."""
        if name in self._replaced:
            return self._replaced[name]
        return self.embedding() if name == "lm_head" and self.lm_head_is_embedding else self.source.linear(name)

    def bias(self, name: str) -> np.ndarray | None:
        """As `Weights.bias`."""
        if name == "lm_head" and self.source.lm_head_is_embedding:
            return None
        return self._biases[name] if name in self._biases else self.source.bias(name)

    def float32(self, name: str) -> np.ndarray:
        """A linear's weight, float32 [out, in], dequantized where it is quantized."""
        weight = self.linear(name)
        return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight

    def _float(self, name: str) -> np.ndarray:
        weight = self._replaced[name]
        return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight


def stored_as(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values in a stored dtype: F32, F16, or BF16 as uint16."""
    if dtype == "BF16":
        return float32_to_bfloat16(values)
    return values.astype({"F16": np.float16, "F32": np.float32}[dtype])


def as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values rounded as `stored_as` rounds them: what a reader of the file will compute with."""
    stored = stored_as(values, dtype)
    return bfloat16_to_float32(stored) if dtype == "BF16" else stored.astype(np.float32)

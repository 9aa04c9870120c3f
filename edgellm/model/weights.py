"""The weights of a program in a checkpoint: our names to the file's, shapes proven, one tensor read at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgellm.errors import ModelError
from edgellm.formats import (
    Checkpoint,
    QuantizationConfig,
    QuantizedTensor,
    StoredTensor,
    describe_linear,
    open_linear,
    read_linear,
)
from edgellm.formats.dtypes import FLOAT_DTYPES
from edgellm.model.program import Program, WeightSpec

#: Where the decoder stands in the names of a file: causal models, bare decoders, multimodal wrappers (v4, v5).
PREFIXES = ("model.", "", "language_model.model.", "model.language_model.")
_QUANTIZED_SUFFIXES = ("qweight", "weight_packed")
#: Tensors of published files that hold nothing the program reads.
_DERIVED = ("rotary_emb.inv_freq", "self_attn.masked_bias", "self_attn.bias")


class Weights:
    """Reads the weights a program names.

    Args:
        checkpoint: the tensors.
        program: what is needed; shapes come from its `WeightSpec`s.
        quantization: how the checkpoint says it is quantized, or None.

    Raises:
        ModelError: a tensor is missing, or has another shape than the config says.
    """

    def __init__(self, checkpoint: Checkpoint, program: Program, quantization: QuantizationConfig | None) -> None:
        self.checkpoint = checkpoint
        self.program = program
        self.quantization = quantization
        self.prefix = find_prefix(checkpoint)
        self._described: dict[str, dict[str, Any]] = {}
        self._fused = {
            part: (stem, parts)
            for stem, parts in program.config.architecture.fused.items()
            for part in parts
        }  # fmt: skip
        self.lm_head_is_embedding = self._check_lm_head()
        for name, spec in program.weights.items():
            self._check(name, spec)

    def embedding(self) -> np.ndarray:
        """`embed_tokens`, float32 [vocab_size, hidden_size]."""
        return self.checkpoint.read_float32(self.file_name("embed_tokens") + ".weight")

    def vector(self, name: str) -> np.ndarray:
        """A norm's weight, float32 [size]."""
        return self.checkpoint.read_float32(self.file_name(name) + ".weight")

    def linear(self, name: str) -> QuantizedTensor | np.ndarray:
        """A linear's weight, quantized or float32 [out, in]. Not for an lm_head that is the embedding."""
        out_features, in_features = self.program.weights[name].shape
        stem, first, rows = self.place(name)
        weight = read_linear(self.checkpoint, stem, self.quantization, rows, in_features)
        return weight if rows == out_features else row_range(weight, first, first + out_features)

    def is_dense(self, name: str) -> bool:
        """Whether `rows` gives this weight: the embedding, or a linear that is stored in floating point."""
        return self.program.weights[name].kind == "embedding" or "group_size" not in self.describe(name)

    def rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows first..last-1 of a dense weight as stored: float32, float16, or uint16 for bfloat16.

        Raises:
            ModelError: the tensor is damaged, or not of floating point.
        """
        if self.program.weights[name].kind == "embedding":
            stem, begin = self.file_name(name), 0
        else:
            stem, begin, _ = self.place(name)
        info = self.checkpoint.info(f"{stem}.weight")
        if info.dtype not in FLOAT_DTYPES:
            allowed = ", ".join(FLOAT_DTYPES)
            raise ModelError(
                "not a floating point tensor", file=info.file, key=info.name, found=info.dtype, allowed=allowed
            )
        return self.checkpoint.read_rows(info.name, begin + first, begin + last)

    def stored(self, name: str) -> StoredTensor | QuantizedTensor:
        """A quantized linear's weight, its codes still in the file where they do not cross words."""
        out_features, in_features = self.program.weights[name].shape
        stem, first, rows = self.place(name)
        weight = open_linear(self.checkpoint, stem, self.quantization, rows, in_features)
        if rows == out_features:
            return weight
        last = first + out_features
        return weight.rows(first, last) if isinstance(weight, StoredTensor) else row_range(weight, first, last)

    def bias(self, name: str) -> np.ndarray | None:
        """A linear's bias, float32 [out], None where the file has none."""
        stem, first, _ = self.place(name)
        if f"{stem}.bias" not in self.checkpoint.tensors:
            return None
        return self.checkpoint.read_float32(f"{stem}.bias")[first : first + self.program.weights[name].shape[0]]

    def describe(self, name: str) -> dict[str, Any]:
        """How a linear is stored: kind, bits, group_size ..., from headers where possible."""
        if name not in self._described:  # a plan, and packing after it, ask for each, which may read a g_idx
            tied = name == "lm_head" and self.lm_head_is_embedding
            stem = self.file_name("embed_tokens") if tied else self.place(name)[0]
            self._described[name] = describe_linear(self.checkpoint, stem, self.quantization)
        return dict(self._described[name])

    def stored_dtype(self, name: str) -> str:
        """The safetensors dtype of an embedding or a vector."""
        return self.checkpoint.info(self.file_name(name) + ".weight").dtype

    def unused(self) -> list[str]:
        """Tensors of the file that the program does not read, buffers that follow from the config left out."""
        stems = {self.file_name(name) if spec.kind != "linear" else self.place(name)[0] for name, spec in self._items()}
        return sorted(
            name
            for name in self.checkpoint.tensors
            if name.rpartition(".")[0] not in stems and not name.endswith(_DERIVED)
        )

    def file_name(self, name: str) -> str:
        """The file's name of a weight, without the last part (`.weight`, `.qweight` ...)."""
        if name == "lm_head":
            return self.prefix.replace("model.", "", 1) + name if self.prefix.startswith("language_model.") else name
        head, _, rest = name.partition(".")
        if head != "layers":
            return self.prefix + name
        layer, _, leaf = rest.partition(".")
        return f"{self.prefix}layers.{layer}.{self.program.config.architecture.names.get(leaf, leaf)}"

    def place(self, name: str) -> tuple[str, int, int]:
        """Where a linear lies: (the file's linear, the first row of `name` in it, rows of the file's linear)."""
        rows = self.program.weights[name].shape[0]
        stem = self.file_name(name)
        leaf = name.split(".", 2)[-1]
        if leaf not in self._fused or self._has_linear(stem):
            return stem, 0, rows
        fused, parts = self._fused[leaf]
        base = name[: len(name) - len(leaf)]
        sizes = [self.program.weights[base + part].shape[0] for part in parts]
        return self.file_name(base + fused), sum(sizes[: parts.index(leaf)]), sum(sizes)

    def _items(self) -> list[tuple[str, WeightSpec]]:
        skip = "lm_head" if self.lm_head_is_embedding else None
        return [(name, spec) for name, spec in self.program.weights.items() if name != skip]

    def _has_linear(self, stem: str) -> bool:
        return any(f"{stem}.{suffix}" in self.checkpoint.tensors for suffix in ("weight", *_QUANTIZED_SUFFIXES))

    def _check_lm_head(self) -> bool:
        """True where lm_head is the embedding. One of its own counts even if the config ties, as in transformers 5."""
        if self._has_linear(self.file_name("lm_head")):
            return False
        if self.program.config.tie_word_embeddings:
            return True
        raise ModelError(
            "lm_head.weight is missing and the config does not tie it",
            file=self.checkpoint.path,
            key=self.file_name("lm_head") + ".weight",
            hint="Set tie_word_embeddings in config.json if the embedding is the output layer.",
        )

    def _check(self, name: str, spec: WeightSpec) -> None:
        """Presence and shapes from headers; packed linears prove theirs when they are read."""
        if name == "lm_head" and self.lm_head_is_embedding:
            return
        if spec.kind != "linear":
            self._check_shape(self.file_name(name) + ".weight", spec.shape)
            return
        stem, _, rows = self.place(name)
        if not self._has_linear(stem):
            raise ModelError("the tensor is missing", file=self.checkpoint.path, key=f"{stem}.weight")
        if f"{stem}.weight" in self.checkpoint.tensors:
            self._check_shape(f"{stem}.weight", (rows, spec.shape[1]))
        if spec.bias or f"{stem}.bias" in self.checkpoint.tensors:
            self._check_shape(f"{stem}.bias", (rows,))

    def _check_shape(self, tensor: str, shape: tuple[int, ...]) -> None:
        info = self.checkpoint.info(tensor)
        if info.shape != shape:
            raise ModelError(
                "shape differs from what config.json says",
                file=info.file,
                key=tensor,
                found=list(info.shape),
                allowed=str(list(shape)),
            )


def find_prefix(checkpoint: Checkpoint) -> str:
    """What stands before `embed_tokens.weight` in this checkpoint. Raises `ModelError` where there is no embedding."""
    for prefix in PREFIXES:
        if f"{prefix}embed_tokens.weight" in checkpoint.tensors:
            return prefix
    raise ModelError(
        "the tensor is missing",
        file=checkpoint.path,
        key="model.embed_tokens.weight",
        hint="This is not a language model's checkpoint, or a part of one.",
    )


def row_range(weight: QuantizedTensor | np.ndarray, first: int, last: int) -> QuantizedTensor | np.ndarray:
    """Rows first..last-1 of a linear's weight [out, in]."""
    if isinstance(weight, QuantizedTensor):
        parts = {name: getattr(weight, name)[first:last] for name in ("codes", "scales", "zeros")}
        return replace(weight, **parts)
    return weight[first:last]

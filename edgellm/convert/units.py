"""The linears of a checkpoint as its files hold them: what is quantized, packed and written as one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgellm.convert.patched import PatchedWeights
from edgellm.formats import QuantizedTensor
from edgellm.model import Weights
from edgellm.model.weights import row_range


@dataclass(frozen=True)
class Unit:
    """One linear of the file; q/k/v or gate/up where a file stacks them.

    Attributes:
        stem: its name in the file, without the last part.
        names: the program's linears, whose rows it stacks in this order.
        rows: of each of them.
        in_features: of all.
        layer: decoder layer, None for lm_head.
    """

    stem: str
    names: tuple[str, ...]
    rows: tuple[int, ...]
    in_features: int
    layer: int | None

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return sum(self.rows), self.in_features

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(self.rows) * self.in_features

    @property
    def leaf(self) -> str:
        """Its name within a layer: `mlp.down_proj`, or `lm_head`."""
        return self.names[0].split(".", 2)[-1]

    def weight(self, weights: PatchedWeights) -> np.ndarray:
        """Its weight as it stands, float32 [out, in]."""
        parts = [weights.float32(name) for name in self.names]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def replace(self, weights: PatchedWeights, weight: QuantizedTensor | np.ndarray) -> None:
        """Let the program's linears be the rows of `weight` [out, in]."""
        first = 0
        for name, rows in zip(self.names, self.rows, strict=True):
            weights.replace(name, weight if len(self.names) == 1 else row_range(weight, first, first + rows))
            first += rows


def units_of(weights: Weights) -> list[Unit]:
    """All linears in the program's order; lm_head only where the file has one of its own."""
    found: dict[str, list[str]] = {}
    for name, spec in weights.program.weights.items():
        if spec.kind == "linear" and not (name == "lm_head" and weights.lm_head_is_embedding):
            found.setdefault(weights.place(name)[0], []).append(name)
    specs = weights.program.weights
    return [
        Unit(
            stem,
            tuple(names),
            tuple(specs[name].shape[0] for name in names),
            specs[names[0]].shape[1],
            layer_of(names[0]),
        )
        for stem, names in found.items()
    ]


def layer_of(name: str) -> int | None:
    """The decoder layer in a weight's name, None outside of the layers."""
    head, _, rest = name.partition(".")
    return int(rest.split(".", 1)[0]) if head == "layers" else None

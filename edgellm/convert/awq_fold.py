"""Where AWQ's scales go: the op before a group of linears divides, the linears' columns multiply, nothing else changes.

    norm -> q/k/v, gate/up     the norm's weight: offset + weight' = (offset + weight) / s
    v_proj -> o_proj           rows of v_proj and its bias; attention only averages values
    up_proj -> down_proj       rows of up_proj and its bias; act(gate) * up is linear in up

The pairs are read off the program, so every architecture of the table has its own: no norm before the branches
(OLMo2) means no pair there. Where several query heads read one value head, their channels of o_proj share divisors.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

import numpy as np

from edgellm.errors import NumericalError, UsageError
from edgellm.model.program import Op, Program


@dataclass(frozen=True)
class Fold:
    """A weight that can take the divisors of an input.

    Attributes:
        source: the weight whose outputs are divided: a norm or a linear.
        linears: all that read these outputs; their columns are multiplied.
        layer: of the model, None after the last.
        offset: what the norm adds to its weight; None where the source is a linear.
        repeat: channels of the linears that one channel of the source feeds.
        head_dim: how many channels lie together in such a repetition.
    """

    source: str
    linears: tuple[str, ...]
    layer: int | None
    offset: float | None = None
    repeat: int = 1
    head_dim: int = 1

    def tied(self, values: np.ndarray) -> np.ndarray:
        """Values [in] with those that share a divisor replaced by their geometric mean."""
        if self.repeat == 1:
            return values
        heads = np.log(values.reshape(-1, self.repeat, self.head_dim)).mean(axis=1, keepdims=True)
        return np.broadcast_to(np.exp(heads), (heads.shape[0], self.repeat, self.head_dim)).reshape(-1)

    def divisors(self, scales: np.ndarray) -> np.ndarray:
        """Scales [in] of the linears -> divisors [source's outputs]. Raises `UsageError` where shared ones differ."""
        if self.repeat == 1:
            return scales
        heads = scales.reshape(-1, self.repeat, self.head_dim)
        if (heads != heads[:, :1]).any():
            raise UsageError("channels that share a value head have different scales", key=self.source)
        return np.ascontiguousarray(heads[:, 0]).reshape(-1)


def find_folds(program: Program, *, lm_head: bool = False) -> tuple[Fold, ...]:
    """Every fold of a plain or fused program, in the order of its ops; the final norm's only on demand."""
    folds = []
    for position, op in enumerate(program.ops):
        found = None
        if op.kind == "rms_norm" and op.inputs != op.outputs:
            found = _norm_fold(program, position, op)
        elif op.kind == "attention":
            found = _value_fold(program, position, op)
        elif op.kind == "act_mul":
            found = _up_fold(program, position, op)
        if found is not None and (lm_head or "lm_head" not in found.linears):
            folds.append(found)
    return tuple(folds)


def fold_scales(
    fold: Fold,
    scales: np.ndarray,
    weights: MutableMapping[str, np.ndarray],
    biases: MutableMapping[str, np.ndarray] | None = None,
) -> None:
    """Replace the source and the linears by their folded forms.

    Args:
        fold: one of `find_folds`.
        scales: float32 [in], above 0.
        weights: float32 arrays by name, the fold's source ([size] or [out, in]) and linears among them.
        biases: float32 [out] by linear name, where there are any.

    Raises:
        UsageError: scales of another width.
        NumericalError: a scale is not a finite number above 0.
    """
    inputs = weights[fold.linears[0]].shape[1]
    if scales.shape != (inputs,):
        raise UsageError("does not fit the linears", key=fold.source, found=scales.shape, allowed=f"[{inputs}]")
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise NumericalError("a scale is not above 0", key=fold.source)
    divisors = fold.divisors(scales)
    if fold.offset is not None:
        weights[fold.source] = folded_norm(weights[fold.source], divisors, fold.offset)
    else:
        weights[fold.source] = weights[fold.source] / divisors[:, None]
        if biases is not None and fold.source in biases:
            biases[fold.source] = biases[fold.source] / divisors
    for name in fold.linears:
        weights[name] = weights[name] * scales


def folded_norm(weight: np.ndarray, divisors: np.ndarray, offset: float) -> np.ndarray:
    """A norm's weight, float32 [size], with its output divided."""
    return ((weight.astype(np.float64) + offset) / divisors - offset).astype(np.float32)


def _norm_fold(program: Program, position: int, op: Op) -> Fold | None:
    readers = _readers(program, position, op.outputs[0])
    if not readers or any(reader.kind not in ("linear", "logits") for reader in readers):
        return None
    linears = tuple(name for reader in readers for name in reader.weights)
    if "lm_head" in linears and program.config.tie_word_embeddings:
        return None
    return Fold(op.weights[0], linears, op.layer, offset=op.attributes["offset"])


def _value_fold(program: Program, position: int, op: Op) -> Fold | None:
    config = program.config
    values = _writer(program, position, "v")
    readers = _readers(program, position, op.outputs[0])
    if values is None or len(readers) != 1 or readers[0].kind != "linear":
        return None
    repeat = config.num_attention_heads // config.num_key_value_heads
    return Fold(values, readers[0].weights, op.layer, repeat=repeat, head_dim=config.head_dim)


def _up_fold(program: Program, position: int, op: Op) -> Fold | None:
    up = _writer(program, position, op.inputs[1])
    readers = _readers(program, position, op.outputs[0])
    if up is None or len(readers) != 1 or readers[0].kind != "linear":
        return None
    return Fold(up, readers[0].weights, op.layer)


def _readers(program: Program, position: int, buffer: str) -> list[Op]:
    """Ops that read what op `position` wrote into a buffer."""
    found = []
    for op in program.ops[position + 1 :]:
        if buffer in op.inputs and buffer not in op.outputs:
            found.append(op)
        elif buffer in op.inputs:
            return []  # changed in place: no linear sees what was written
        if buffer in op.outputs:
            break
    return found


def _writer(program: Program, position: int, buffer: str) -> str | None:
    """The linear whose outputs stand in a buffer when op `position` reads it, None where something changed them."""
    for op in reversed(program.ops[:position]):
        if buffer in op.outputs:
            return op.weights[op.outputs.index(buffer)] if op.kind == "linear" else None
    return None

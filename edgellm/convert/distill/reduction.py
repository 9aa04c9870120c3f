"""Which layers, channels and heads of a model a smaller one keeps.

Width goes by activations on calibration rows, as in Minitron (arXiv:2407.14679): hidden channels by the mean square of
what the layers read of them, FFN channels and attention groups by that times the squared norm of the weights that read
them (Wanda, arXiv:2306.11695). Channels are chosen, not mixed as PCA would (SliceGPT, arXiv:2401.15024): a choice
passes through every norm of the table, keeps tied embeddings tied, and a student's hidden states stay comparable with
the teacher's, channel by channel. Depth keeps evenly spread layers, the first and the last included (DistilBERT,
arXiv:1910.01108), or those of a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgellm.convert.distill.network import Arrays, Network, sequences
from edgellm.convert.distill.parameters import Parameters
from edgellm.errors import UsageError
from edgellm.model.config import ModelConfig
from edgellm.model.program import Op, Program


@dataclass(frozen=True)
class Reduction:
    """Sizes of the smaller model; None keeps what there is.

    Attributes:
        layers: how many, or which ones, ascending.
        hidden_size, intermediate_size: channels.
        num_attention_heads: query heads; KV heads go with theirs, so that as many share one as before.
    """

    layers: int | tuple[int, ...] | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_attention_heads: int | None = None

    def __bool__(self) -> bool:
        sizes = (self.layers, self.hidden_size, self.intermediate_size, self.num_attention_heads)
        return any(size is not None for size in sizes)


@dataclass(frozen=True)
class Kept:
    """Numbers of what is kept, ascending.

    Attributes:
        layers: of the source, by the student's layer.
        channels: int64 [hidden_size].
        groups: by source layer, numbers of KV heads. ffn: by source layer, numbers of FFN channels.
    """

    layers: tuple[int, ...]
    channels: np.ndarray
    groups: Mapping[int, np.ndarray]
    ffn: Mapping[int, np.ndarray]

    def buffer(self, name: str, layer: int | None, config: ModelConfig) -> np.ndarray:
        """Numbers of the elements kept of a buffer of the program."""
        if name in ("x", "h", "y"):
            return self.channels
        if name in ("gate", "up", "m"):
            return self.ffn[layer]
        each = config.head_dim
        if name in ("q", "a"):
            each *= config.num_attention_heads // config.num_key_value_heads
        return (self.groups[layer][:, None] * each + np.arange(each)).reshape(-1)


@dataclass(frozen=True)
class Statistics:
    """Of calibration rows. Attributes: squares: by the first weight of an op, the mean square of each element it reads,
    float64; shares: the same of its rows scaled to a sum of squares of 1."""

    squares: dict[str, np.ndarray]
    shares: dict[str, np.ndarray]


def collect(network: Network, rows: np.ndarray, at_once: int) -> Statistics:
    """Run the network over `rows` int32 [N, T], `at_once` of them at a time."""
    squares: dict[str, np.ndarray] = {}
    shares: dict[str, np.ndarray] = {}

    def tap(op: Op, buffers: Arrays) -> None:
        if op.kind not in ("linear", "rms_norm"):
            return
        square = np.square(buffers[op.inputs[0]])
        share = square / (square.sum(axis=1, keepdims=True) + np.float32(1e-30))
        for table, found in ((squares, square), (shares, share)):
            total = found.sum(axis=0, dtype=np.float64) / (len(rows) * rows.shape[1])
            table[op.weights[0]] = table.get(op.weights[0], 0) + total

    for first in range(0, len(rows), at_once):
        ids = sequences(rows[first : first + at_once])
        buffers = network.forward(network.body, {"token_ids": ids}, tap=tap)
        tap(Op("linear", ("h",), (), network.head.weights), buffers)
    return Statistics(squares, shares)


def sketch(config: ModelConfig, reduction: Reduction) -> Kept:
    """What has the sizes of a reduction, the first of everything. Raises `UsageError` as `choose` does."""
    layers = choose_layers(config.num_hidden_layers, reduction.layers)
    channels = _best(np.zeros(config.hidden_size), reduction.hidden_size, "--hidden-size")
    groups = _best(np.zeros(config.num_key_value_heads), _groups(config, reduction.num_attention_heads), "--heads")
    ffn = _best(np.zeros(config.intermediate_size), reduction.intermediate_size, "--intermediate-size")
    return Kept(layers, channels, dict.fromkeys(layers, groups), dict.fromkeys(layers, ffn))


def choose(program: Program, parameters: Parameters, reduction: Reduction, found: Statistics) -> Kept:
    """What a smaller model keeps. Raises `UsageError` where a size is not below what there is."""
    config = program.config
    layers = choose_layers(config.num_hidden_layers, reduction.layers)
    channels = _best(_hidden_scores(program, found), reduction.hidden_size, "--hidden-size")
    wanted = _groups(config, reduction.num_attention_heads)
    groups, ffn = {}, {}
    for layer in layers:
        for name, scores in (("self_attn.o_proj", groups), ("mlp.down_proj", ffn)):
            weight = parameters[f"layers.{layer}.{name}"]
            reads = found.squares[f"layers.{layer}.{name}"]
            scores[layer] = reads * np.square(weight).sum(axis=0, dtype=np.float64)
        by_group = groups[layer].reshape(config.num_key_value_heads, -1).sum(axis=1)
        groups[layer] = _best(by_group, wanted, "--heads")
        ffn[layer] = _best(ffn[layer], reduction.intermediate_size, "--intermediate-size")
    return Kept(layers, channels, groups, ffn)


def _groups(config: ModelConfig, heads: int | None) -> int | None:
    """KV heads of so many query heads. Raises `UsageError`."""
    shared = config.num_attention_heads // config.num_key_value_heads
    if heads is not None and heads % shared:
        allowed = f"a multiple of {shared}, the heads that share keys and values"
        raise UsageError("heads go in groups", key="--heads", found=heads, allowed=allowed)
    return None if heads is None else heads // shared


def choose_layers(count: int, wanted: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """Numbers of the kept layers of `count`. Raises `UsageError`."""
    if wanted is None:
        return tuple(range(count))
    if isinstance(wanted, int):
        if not 1 <= wanted <= count:
            raise UsageError("out of range", key="--layers", found=wanted, allowed=f"1 to {count}")
        return tuple(int(number) for number in np.linspace(0, count - 1, wanted).round()) if wanted > 1 else (0,)
    if not wanted or list(wanted) != sorted(set(wanted)) or not 0 <= wanted[0] <= wanted[-1] < count:
        found = ",".join(map(str, wanted))
        raise UsageError("not such a list", key="--layers", found=found, allowed=f"ascending numbers, 0 to {count - 1}")
    return wanted


def _hidden_scores(program: Program, found: Statistics) -> np.ndarray:
    """The mean square of each channel over all ops that read the residual stream, each counting the same."""
    total = np.zeros(program.config.hidden_size)
    for op in program.ops:
        if op.kind in ("linear", "logits") and op.inputs[0] in ("x", "h"):
            squares = found.squares[op.weights[0]]
            total += squares / max(squares.sum(), 1e-30)
    return total


def _best(scores: np.ndarray, wanted: int | None, option: str) -> np.ndarray:
    if wanted is None:
        return np.arange(len(scores))
    if not 1 <= wanted <= len(scores):
        raise UsageError("out of range", key=option, found=wanted, allowed=f"at most {len(scores)} (heads: groups)")
    return np.sort(np.argsort(-scores, kind="stable")[:wanted])

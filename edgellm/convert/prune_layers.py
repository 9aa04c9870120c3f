"""The layers of a model cut one after the other on calibration tokens, one layer's weights in memory.

In each layer first KV groups go and o_proj is re-fitted to the inputs that are left, then MLP channels go and down_proj
is re-fitted; every cut sees what the cuts before it really give. A re-fit to the source runs the source's hidden states
alongside: o_proj is to give what they are behind the attention, down_proj what they are behind the layer, and behind
the layers that went after it. While cutting, what went is zero in matrices of the source's shapes; `prune_write` takes
the rows and columns out. Hidden states stay in memory or in files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm.convert import prune_survey
from edgellm.convert.activations import Activations
from edgellm.convert.blocks import BlockRunner
from edgellm.convert.hessian import Hessian, output_error
from edgellm.convert.prune_recipe import PruneRecipe
from edgellm.convert.prune_write import Spill
from edgellm.convert.refit import refit, spread
from edgellm.convert.scores import keep_best, unit_scores
from edgellm.convert.sparsity import Sparsity, sparsify
from edgellm.model import OpenedModel, Program
from edgellm.model.cut import layer_span, live_before

#: Called with (tokens times passes done, those in all).
PruneProgress = Callable[[int, int], None]
_EMBEDDED_TOKENS = 8192


@dataclass(frozen=True)
class Cut:
    """What a cut did to the linear behind it.

    Attributes:
        kept, of: units; equal where nothing was cut and the weights were re-fitted alone.
        error: squared error of the linear's output on calibration tokens, relative to the output wanted (see `refit` of
            the recipe), the weights left as they were.
        refit_error: after the re-fit; None without one.
    """

    kept: int
    of: int
    error: float
    refit_error: float | None


@dataclass(frozen=True)
class LayerCuts:
    """A layer that stays.

    Attributes:
        layer: its number in the source.
        groups: KV heads that stay, ascending. channels: MLP channels that stay, ascending.
        attention, mlp: what the cuts did to o_proj and down_proj, None where nothing was cut.
    """

    layer: int
    groups: np.ndarray
    channels: np.ndarray
    attention: Cut | None
    mlp: Cut | None


@dataclass
class _Sums:
    """X^T X, X^T T and |T|^2 of a linear's inputs X and the outputs T wanted of it."""

    hessian: Hessian
    cross: np.ndarray
    squares: float = 0.0

    def add(self, inputs: np.ndarray, outputs: np.ndarray) -> None:
        """Take more tokens, float32 [n, in] and [n, out]."""
        self.hessian.add(inputs)
        self.cross += inputs.T @ outputs
        self.squares += float(np.square(outputs).sum(dtype=np.float64))

    def error(self, weight: np.ndarray) -> float:
        """|X W^T - T|^2 / |T|^2 of a weight float32 [out, in]."""
        across = float(np.einsum("ij,ji->", weight, self.cross))
        error = output_error(weight, self.hessian.matrix()) - 2 * across + self.squares
        return max(error, 0.0) / self.squares if self.squares > 0 else 0.0


class Pruning:
    """One run: hidden states on their way through the layers, and the weights as they are cut.

    Args:
        opened, recipe, calibration, progress, max_memory: see `prune`.
        folder: for temporary files.
    """

    def __init__(
        self,
        opened: OpenedModel,
        recipe: PruneRecipe,
        calibration: np.ndarray,
        folder: Path,
        max_memory: int | None,
        progress: PruneProgress | None,
    ) -> None:
        self.opened, self.recipe, self.calibration = opened, recipe, calibration
        self.runner = BlockRunner(opened)
        self.program: Program = self.runner.program
        self.spill = Spill(folder)
        self._progress = progress
        self._done, self._passes = 0, 1
        shape = (*calibration.shape, opened.config.hidden_size)
        # a norm on a branch's output stands between the linear and the hidden states
        follows = recipe.refit == "source" and recipe.sparsity is None and not opened.config.post_norms
        count = 1 + follows
        in_file = max_memory is not None and 4 * count * int(np.prod(shape)) > max_memory
        self.hidden = Activations(*shape, path=folder / "hidden" if in_file else None)
        self.source = Activations(*shape, path=folder / "source" if in_file else None) if follows else None
        self._unpruned = BlockRunner(opened)

    def close(self) -> None:
        """Free the hidden states."""
        for states in (self.hidden, self.source):
            if states is not None:
                states.close()

    def choose_layers(self) -> tuple[list[int], prune_survey.Survey | None]:
        """Layers that go, and what was found about all of them where it had to be."""
        recipe, layers = self.recipe, self.opened.config.num_hidden_layers
        surveyed = (recipe.layers and not recipe.layer_ids) or recipe.ffn_by_layer
        kept = layers - (len(set(recipe.layer_ids)) or recipe.layers)
        cuts = sum(map(bool, (recipe.kv_groups, recipe.narrows, recipe.sparsity))) if self.source is None else 2
        self._passes = kept * (1 + cuts) + layers * bool(surveyed)
        if not surveyed:
            return sorted(set(recipe.layer_ids)), None
        self._embed(self.hidden)
        survey = prune_survey.survey(self.runner, self.hidden, self._step)
        if recipe.layer_ids:
            return sorted(set(recipe.layer_ids)), survey
        order = np.argsort(survey.influences, kind="stable")
        return sorted(int(layer) for layer in order[: recipe.layers]), survey

    def cut_layers(self, kept: Sequence[int], survey: prune_survey.Survey | None) -> list[LayerCuts]:
        """Cut each of the layers `kept`, in order."""
        config = self.opened.config
        widths = {layer: self.recipe.kept_width(config.mlp_width(layer)) for layer in kept}
        if self.recipe.ffn_by_layer and self.recipe.narrows and survey is not None:
            widths = prune_survey.share_widths(survey.energies, widths, self.recipe.ffn_multiple)
        self._embed(self.hidden)
        if self.source is not None:
            self._embed(self.source)
            self._follow_layers(0, kept[0])
        following = [*kept[1:], config.num_hidden_layers]
        return [self._cut_layer(layer, widths[layer], after) for layer, after in zip(kept, following, strict=True)]

    def _cut_layer(self, layer: int, width: int, after: int) -> LayerCuts:
        """Cut a layer; `after` is the next one that stays."""
        config, recipe = self.opened.config, self.recipe
        first, last = layer_span(self.program, layer, layer + 1)
        middle = self._middle(layer, first, last)
        if recipe.sparsity is not None:
            self._put_zeros(layer, (first, last), recipe.sparsity)
        group_width = config.num_attention_heads // config.num_key_value_heads * config.head_dim
        self._follow(first, middle)
        o_proj, count = f"layers.{layer}.self_attn.o_proj", recipe.kept_groups(config)
        groups, attention = self._cut_linear(o_proj, first, group_width, count)
        self._advance(self.runner, self.hidden, first, middle)
        self._follow(middle, last)
        self._follow_layers(layer + 1, after)
        channels, mlp = self._cut_linear(f"layers.{layer}.mlp.down_proj", middle, 1, width)
        self._advance(self.runner, self.hidden, middle, last)
        self._step(self.calibration.size)
        self.runner.weights.forget(f"layers.{layer}.")
        return LayerCuts(layer, groups, channels, attention, mlp)

    def _middle(self, layer: int, first: int, last: int) -> int:
        """The op where the MLP branch begins: the last one before its first linear that needs `x` alone."""
        ops = self.program.ops
        gate = next(i for i in range(first, last) if f"layers.{layer}.mlp.gate_proj" in ops[i].weights)
        return next(i for i in range(gate, first, -1) if live_before(self.program, i) == ("x",))

    def _cut_linear(self, name: str, begin: int, width: int, count: int) -> tuple[np.ndarray, Cut | None]:
        """Keep `count` units of `width` inputs of linear `name`, in the branch that begins with op `begin`."""
        weights, recipe = self.runner.weights, self.recipe
        weight = weights.float32(name)
        of = weight.shape[1] // width
        if count == of and self.source is None:
            return np.arange(of), None
        sums = self._sums(name, begin, weight)
        matrix = sums.hessian.matrix()
        units = np.arange(of)
        if count < of:
            units = keep_best(unit_scores(weight, matrix, width, recipe.measure, recipe.ridge), count)
        keep = (units[:, None] * width + np.arange(width)).reshape(-1)
        found = spread(weight[:, keep], keep, weight.shape[1])
        error, refit_error = sums.error(found), None
        if recipe.refit != "none":
            columns = refit(weight, matrix, keep, recipe.ridge, sums.cross if self.source is not None else None)
            found = spread(columns, keep, weight.shape[1])
            refit_error = sums.error(found)
            self.spill.put(name, columns)
        weights.replace(name, found)
        return units, Cut(count, of, error, refit_error)

    def _sums(self, name: str, begin: int, weight: np.ndarray) -> _Sums:
        """Over the calibration tokens: the inputs of linear `name`, and the outputs that are wanted of it."""
        config = self.opened.config
        end = next(i for i in range(begin, len(self.program.ops)) if name in self.program.ops[i].weights)
        bias = self.runner.weights.bias(name)
        found = _Sums(Hessian(weight.shape[1], name), np.zeros(weight.shape[::-1]))
        sequences, length, _ = self.hidden.shape
        step = max(_EMBEDDED_TOKENS // length, 1)
        with self.runner.stretch(begin, end) as stretch:
            for first in range(0, sequences, step):
                last = min(first + step, sequences)
                states = self.hidden.read(first, last)
                inputs = stretch.run({"x": states}).reshape(-1, weight.shape[1])
                if self.source is None:
                    outputs = inputs @ weight.T
                else:
                    outputs = (self.source.read(first, last) - states).reshape(len(inputs), -1)
                    outputs = outputs / np.float32(config.residual_multiplier) - (0 if bias is None else bias)
                found.add(inputs, outputs)
        self._step(self.calibration.size)
        return found

    def _put_zeros(self, layer: int, span: tuple[int, int], sparsity: Sparsity) -> None:
        """Zeros in every linear of a layer, judged by what the layers before it now give."""
        hessians: dict[str, Hessian] = {}  # linears that share an input share one

        def tap(names: tuple[str, ...], inputs: np.ndarray) -> None:
            if names[0] not in hessians:
                hessians.update(dict.fromkeys(names, Hessian(inputs.shape[1], names[0])))
            hessians[names[0]].add(inputs)

        with self.runner.stretch(*span) as stretch:
            stretch.run_all({"x": self.hidden}, None, tap)
        self._step(self.calibration.size)
        for name, hessian in hessians.items():
            weight = sparsify(self.runner.weights.float32(name), hessian.matrix(), sparsity)
            self.runner.weights.replace(name, weight)
            self.spill.put(name, weight)

    def _follow(self, begin: int, end: int) -> None:
        """The source's hidden states through ops begin..end-1, where they are needed."""
        if self.source is not None:
            self._advance(self._unpruned, self.source, begin, end)

    def _follow_layers(self, first: int, last: int) -> None:
        """The source's hidden states through layers that went: those from `first` up to, not including, `last`."""
        for layer in range(first, last):
            self._follow(*layer_span(self.program, layer, layer + 1))

    @staticmethod
    def _advance(runner: BlockRunner, states: Activations, begin: int, end: int) -> None:
        """Hidden states through ops begin..end-1 with the weights as they now are."""
        with runner.stretch(begin, end) as stretch:
            stretch.run_all({"x": states}, states)

    def _embed(self, states: Activations) -> None:
        sequences, length = self.calibration.shape
        step = max(_EMBEDDED_TOKENS // length, 1)
        with self.runner.stretch(0, layer_span(self.program, 0, 1)[0]) as stretch:
            for first in range(0, sequences, step):
                states.write(first, stretch.run_ids(self.calibration[first : first + step]))

    def _step(self, tokens: int) -> None:
        self._done += tokens
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)

    @property
    def _total(self) -> int:
        return self._passes * int(self.calibration.size)

"""The layers of a model cut one after the other on calibration tokens, one layer's weights in memory.

In each layer first KV groups go and o_proj is re-fitted to the inputs that are left, then MLP channels go and down_proj
is re-fitted; every cut sees what the cuts before it really give. While cutting, what went is zero in matrices of the
source's shapes; `prune_write` takes the rows and columns out. Hidden states stay in memory or in a file.
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

#: Called with (tokens times layers done, those in all).
PruneProgress = Callable[[int, int], None]
_EMBEDDED_TOKENS = 8192


@dataclass(frozen=True)
class Cut:
    """What a cut did to the linear behind it.

    Attributes:
        kept, of: units.
        error: relative squared error of the linear's output on calibration tokens, the weights left as they were.
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
        path = folder / "hidden" if max_memory is not None and 4 * int(np.prod(shape)) > max_memory else None
        self.hidden = Activations(*shape, path=path)

    def close(self) -> None:
        """Free the hidden states."""
        self.hidden.close()

    def choose_layers(self) -> tuple[list[int], prune_survey.Survey | None]:
        """Layers that go, and what was found about all of them where it had to be."""
        recipe, layers = self.recipe, self.opened.config.num_hidden_layers
        surveyed = (recipe.layers and not recipe.layer_ids) or recipe.ffn_by_layer
        kept = layers - (len(set(recipe.layer_ids)) or recipe.layers)
        cuts = sum(map(bool, (recipe.kv_groups, recipe.ffn, recipe.sparsity)))
        self._passes = kept * (1 + cuts) + layers * bool(surveyed)
        if not surveyed:
            return sorted(set(recipe.layer_ids)), None
        self._embed()
        survey = prune_survey.survey(self.runner, self.hidden, self._step)
        if recipe.layer_ids:
            return sorted(set(recipe.layer_ids)), survey
        order = np.argsort(survey.influences, kind="stable")
        return sorted(int(layer) for layer in order[: recipe.layers]), survey

    def cut_layers(self, kept: Sequence[int], survey: prune_survey.Survey | None) -> list[LayerCuts]:
        """Cut each of the layers `kept`, in order."""
        config = self.opened.config
        widths = {layer: self.recipe.kept_width(config.mlp_width(layer)) for layer in kept}
        if self.recipe.ffn_by_layer and self.recipe.ffn and survey is not None:
            widths = prune_survey.share_widths(survey.energies, widths, self.recipe.ffn_multiple)
        self._embed()
        return [self._cut_layer(layer, widths[layer]) for layer in kept]

    def _cut_layer(self, layer: int, width: int) -> LayerCuts:
        config = self.opened.config
        first, last = layer_span(self.program, layer, layer + 1)
        middle = self._middle(layer, first, last)
        groups, count = np.arange(config.num_key_value_heads), self.recipe.kept_groups(config)
        channels = np.arange(config.mlp_width(layer))
        attention = mlp = None
        if self.recipe.sparsity is not None:
            self._put_zeros(layer, (first, last), self.recipe.sparsity)
        if count < len(groups):
            group_width = config.num_attention_heads // len(groups) * config.head_dim
            name = f"layers.{layer}.self_attn.o_proj"
            groups, attention = self._cut_linear(name, (first, middle), group_width, count)
        self._advance(first, middle)
        if width < len(channels):
            channels, mlp = self._cut_linear(f"layers.{layer}.mlp.down_proj", (middle, last), 1, width)
        self._advance(middle, last)
        self._step(self.calibration.size)
        self.runner.weights.forget(f"layers.{layer}.")
        return LayerCuts(layer, groups, channels, attention, mlp)

    def _middle(self, layer: int, first: int, last: int) -> int:
        """The op where the MLP branch begins: the last one before its first linear that needs `x` alone."""
        ops = self.program.ops
        gate = next(i for i in range(first, last) if f"layers.{layer}.mlp.gate_proj" in ops[i].weights)
        return next(i for i in range(gate, first, -1) if live_before(self.program, i) == ("x",))

    def _cut_linear(self, name: str, span: tuple[int, int], width: int, count: int) -> tuple[np.ndarray, Cut]:
        """Keep `count` units of `width` inputs of linear `name`, whose inputs the ops `span` make."""
        weights = self.runner.weights
        weight = weights.float32(name)
        hessian = Hessian(weight.shape[1], name)

        def tap(names: tuple[str, ...], inputs: np.ndarray) -> None:
            if name in names:
                hessian.add(inputs)

        with self.runner.stretch(*span) as stretch:
            stretch.run_all({"x": self.hidden}, None, tap)
        self._step(self.calibration.size)
        matrix = hessian.matrix()
        units = keep_best(unit_scores(weight, matrix, width, self.recipe.measure, self.recipe.ridge), count)
        keep = (units[:, None] * width + np.arange(width)).reshape(-1)
        plain = spread(weight[:, keep], keep, weight.shape[1])
        whole = output_error(weight, matrix)
        error, refit_error = _relative(output_error(weight - plain, matrix), whole), None
        if self.recipe.refit:
            columns = refit(weight, matrix, keep, self.recipe.ridge)
            plain = spread(columns, keep, weight.shape[1])
            refit_error = _relative(output_error(weight - plain, matrix), whole)
            self.spill.put(name, columns)
        weights.replace(name, plain)
        return units, Cut(count, weight.shape[1] // width, error, refit_error)

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

    def _advance(self, begin: int, end: int) -> None:
        """Hidden states through ops begin..end-1 with the weights as they now are."""
        with self.runner.stretch(begin, end) as stretch:
            stretch.run_all({"x": self.hidden}, self.hidden)

    def _embed(self) -> None:
        sequences, length = self.calibration.shape
        step = max(_EMBEDDED_TOKENS // length, 1)
        with self.runner.stretch(0, layer_span(self.program, 0, 1)[0]) as stretch:
            for first in range(0, sequences, step):
                self.hidden.write(first, stretch.run_ids(self.calibration[first : first + step]))

    def _step(self, tokens: int) -> None:
        self._done += tokens
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)

    @property
    def _total(self) -> int:
        return self._passes * int(self.calibration.size)


def _relative(error: float, whole: float) -> float:
    return error / whole if whole > 0 else 0.0

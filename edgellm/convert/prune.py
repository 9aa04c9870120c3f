"""Structured pruning: fewer layers, KV groups and MLP channels, so that what is left runs faster by its shapes.

One pass over the calibration tokens, layer by layer, with one layer's weights in memory. In each layer first KV groups
go and o_proj is re-fitted to the inputs that are left, then MLP channels go and down_proj is re-fitted; every cut sees
what the cuts before it really give. Hidden states stay in memory or in a file.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.convert import prune_survey
from edgellm.convert.activations import Activations
from edgellm.convert.blocks import BlockRunner
from edgellm.convert.hessian import Hessian, output_error
from edgellm.convert.prune_recipe import PruneRecipe
from edgellm.convert.prune_write import Spill, write_pruned
from edgellm.convert.refit import refit, spread
from edgellm.convert.scores import keep_best, unit_scores
from edgellm.errors import ModelError, UsageError
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


@dataclass(frozen=True)
class PruneReport:
    """What was pruned.

    Attributes:
        removed_layers: numbers in the source. influences: block influence of every layer of the source, where it was
            asked for.
        layers: what happened to each that stays.
        parameters, parameters_before: counts. nbytes, nbytes_before: of all tensors written, and of the source's.
        tokens: calibration tokens. seconds: wall time.
        notes: what a person should know.
    """

    removed_layers: tuple[int, ...]
    influences: tuple[float, ...]
    layers: tuple[LayerCuts, ...]
    parameters: int
    parameters_before: int
    nbytes: int
    nbytes_before: int
    tokens: int
    seconds: float
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """For JSON; of the lists of channels only their lengths."""
        facts = {key: value for key, value in vars(self).items() if key != "layers"}
        facts["layers"] = [
            {
                "layer": entry.layer,
                "groups": entry.groups.tolist(),
                "channels": len(entry.channels),
                "attention": None if entry.attention is None else asdict(entry.attention),
                "mlp": None if entry.mlp is None else asdict(entry.mlp),
            }
            for entry in self.layers
        ]
        return facts


def prune(
    opened: OpenedModel,
    recipe: PruneRecipe,
    calibration: np.ndarray,
    out: str | Path,
    *,
    progress: PruneProgress | None = None,
    scratch: str | Path | None = None,
    max_memory: int | None = None,
    overwrite: bool = False,
) -> PruneReport:
    """Prune a checkpoint and write a Hugging Face checkpoint to the folder `out`.

    Args:
        opened: the source, in floating point.
        recipe: what goes.
        calibration: token ids int32 [N, L].
        out: see `formats.save_checkpoint`.
        progress: see `PruneProgress`.
        scratch: folder for temporary files, by default beside `out`.
        max_memory: bytes of hidden states above which they are kept in a file.
        overwrite: replace what is at `out`.

    Raises:
        UsageError: the recipe does not fit the model, or the calibration is empty.
        ModelError: the source is quantized or damaged. NumericalError: NaN or infinity on the way.
        OutputError: nothing can be written there; what was there is untouched.
    """
    start = time.monotonic()
    _check(opened, recipe, calibration)
    out = Path(out)
    parent = Path(scratch) if scratch is not None else _existing(out)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=parent)))
        pruning = _Pruning(opened, recipe, calibration, folder, max_memory, progress)
        stack.callback(pruning.close)
        removed, survey = pruning.choose_layers()
        kept = [layer for layer in range(opened.config.num_hidden_layers) if layer not in removed]
        cuts = pruning.cut_layers(kept, survey)
        written = write_pruned(opened, cuts, pruning.spill, out, overwrite=overwrite)
    return PruneReport(
        removed_layers=tuple(removed),
        influences=tuple(survey.influences) if survey is not None else (),
        layers=tuple(cuts),
        parameters=written.parameters,
        parameters_before=opened.weights.program.parameters,
        nbytes=written.nbytes,
        nbytes_before=sum(info.nbytes for info in opened.checkpoint.tensors.values()),
        tokens=int(calibration.size),
        seconds=time.monotonic() - start,
        notes=written.notes,
    )


def _check(opened: OpenedModel, recipe: PruneRecipe, calibration: np.ndarray) -> None:
    if opened.quantization is not None:
        hint = "Prune the checkpoint that it was made from, and quantize what comes out."
        raise ModelError("is quantized, and pruning needs floating point weights", file=opened.path, hint=hint)
    recipe.check(opened.config)
    if calibration.ndim != 2 or not calibration.size:
        raise UsageError("must be [N, L] token ids", key="calibration", found=list(calibration.shape))
    if calibration.min() < 0 or calibration.max() >= opened.config.vocab_size:
        allowed = f"0 to {opened.config.vocab_size - 1}"
        raise UsageError("no such token id", key="calibration", found=int(calibration.max()), allowed=allowed)


def _existing(out: Path) -> Path:
    return next(folder for folder in out.absolute().parents if folder.exists())


class _Pruning:
    """One run: hidden states on their way through the layers, and the weights as they are cut."""

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
        self.hidden.close()

    def choose_layers(self) -> tuple[list[int], prune_survey.Survey | None]:
        """Layers that go, and what was found about all of them where it had to be."""
        recipe, layers = self.recipe, self.opened.config.num_hidden_layers
        surveyed = (recipe.layers and not recipe.layer_ids) or recipe.ffn_by_layer
        kept = layers - (len(set(recipe.layer_ids)) or recipe.layers)
        self._passes = kept * (1 + bool(recipe.kv_groups) + bool(recipe.ffn)) + layers * bool(surveyed)
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

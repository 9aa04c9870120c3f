"""What a pruned conversion will write, hold and take, from the source's shapes and what is to go."""

from __future__ import annotations

from dataclasses import replace

from edgellm.convert.forecast import Forecast, Rates, try_rates
from edgellm.convert.prune_budget import PruneBudget
from edgellm.convert.prune_recipe import PruneRecipe
from edgellm.convert.recipe import Recipe
from edgellm.convert.units import Unit, layer_of, units_of
from edgellm.model import ModelConfig, OpenedModel

#: Passes of the tokens through each layer that stays: with each part of the cut one that for the sums and that for the
#: next part. The source's hidden states, and the survey that chooses layers, go once through all of them.
_PASSES = 2
#: Products and factorizations in float64 run at about this share of the float32 product's rate.
_FLOAT64_RATE = 0.38
#: Operations of the float32 product's rate that X^T X takes a token and square of the width, float64 sums counted.
_SUMS = 2.4
_BEHIND_CUTS = ("self_attn.o_proj", "mlp.down_proj")
_UNKNOWN_VOCABULARY = "what goes of the vocabulary shows when the corpus is read: the sizes here have all of it"
_FROM_SHAPES = "sizes are those of the source, less what goes by the shapes"


def foresee_pruned(
    opened: OpenedModel,
    recipe: Recipe,
    cut: PruneRecipe,
    shape: tuple[int, int],
    budget: PruneBudget,
    whole: Forecast | None,
    rates: Rates | None = None,
) -> Forecast:
    """The forecast of pruning, and of quantizing what is left.

    Args:
        cut: what `recipe.prune` is for this model.
        shape: of the calibration ids [N, L].
        budget: of the pruning.
        whole: the forecast of quantizing the source as it is, None where nothing is quantized.
        rates: of this machine, tried where not given.
    """
    rates = rates or try_rates(recipe.scheme, opened.checkpoint.files)
    units = [unit for unit in units_of(opened.weights) if unit.layer is not None]
    shares = {unit.stem: _share(opened.config, cut, unit) for unit in units}
    tensors = opened.checkpoint.tensors
    source_bytes = sum(info.nbytes for info in tensors.values())
    dense = source_bytes - sum(
        (1 - shares[unit.stem]) * tensors[name].nbytes for unit in units if (name := f"{unit.stem}.weight") in tensors
    )
    dense -= _vectors_bytes(opened) * (1 - _layers_share(opened.config, cut))
    seconds = _pruning_seconds(opened, cut, units, shares, shape[0] * shape[1], rates)
    seconds += rates.seconds_on_disk(source_bytes, dense)
    notes = [_FROM_SHAPES, *([_UNKNOWN_VOCABULARY] if recipe.prune.vocabulary else [])]
    hidden = 8 * shape[0] * shape[1] * opened.config.hidden_size if budget.hidden_bytes == 0 else 0
    base = Forecast(
        source_bytes, round(dense), 0.0, 0, shape[0] * shape[1], budget.peak_bytes, "pruning", round(dense) + hidden,
        seconds, rates.product / 1e9, tuple(notes),
    )  # fmt: skip
    if whole is None:
        return base
    kept = sum(unit.size * shares[unit.stem] for unit in units) / sum(unit.size for unit in units)
    went = sum(unit.size * (1 - shares[unit.stem]) for unit in units) * whole.bits_per_weight / 8
    went += _vectors_bytes(opened) * (1 - _layers_share(opened.config, cut))
    if recipe.packing != "awq":  # g_idx, four bytes an input
        went += sum(4 * unit.in_features * (1 - _inputs_share(opened.config, cut, unit)) for unit in units)
    output = round(whole.output_bytes - went)
    largest = max((base, whole), key=lambda forecast: forecast.peak_bytes)
    return replace(
        whole,
        output_bytes=output,
        quantized_weights=round(whole.quantized_weights * kept),
        peak_bytes=largest.peak_bytes,
        peak_at=largest.peak_at,
        disk_bytes=base.disk_bytes + output + whole.disk_bytes - whole.output_bytes,
        seconds=seconds + whole.seconds * kept,
        notes=(*notes, *whole.notes),
    )


def _share(config: ModelConfig, cut: PruneRecipe, unit: Unit) -> float:
    """The share of a linear that stays, averaged over layers where any of them may go."""
    share = _layers_share(config, cut)
    if unit.leaf.startswith("mlp."):
        width = config.mlp_width(unit.layer)
        return share * cut.kept_width(width) / width
    return share * cut.kept_groups(config) / config.num_key_value_heads


def _inputs_share(config: ModelConfig, cut: PruneRecipe, unit: Unit) -> float:
    """The share of a linear's inputs that stays, averaged as in `_share`."""
    return _share(config, cut, unit) if unit.leaf in _BEHIND_CUTS else _layers_share(config, cut)


def _layers_share(config: ModelConfig, cut: PruneRecipe) -> float:
    layers = config.num_hidden_layers
    return (layers - (len(set(cut.layer_ids)) or cut.layers)) / layers


def _vectors_bytes(opened: OpenedModel) -> int:
    """Of the norms of all layers."""
    weights, tensors = opened.weights, opened.checkpoint.tensors
    names = [name for name, spec in weights.program.weights.items() if spec.kind == "vector"]
    stems = {weights.file_name(name) for name in names if layer_of(name) is not None}
    return sum(tensors[f"{stem}.weight"].nbytes for stem in stems if f"{stem}.weight" in tensors)


def _pruning_seconds(
    opened: OpenedModel, cut: PruneRecipe, units: list[Unit], shares: dict[str, float], tokens: int, rates: Rates
) -> float:
    config = opened.config
    operations = 0.0
    stays = _layers_share(config, cut)
    follows = cut.refit == "source" and not config.post_norms
    through_all = follows + bool(cut.layers or cut.ffn_by_layer)
    for unit in units:
        operations += (_PASSES * stays + through_all) * 2 * tokens * unit.size
        if unit.leaf in _BEHIND_CUTS and (follows or shares[unit.stem] < stays):
            width, outputs = unit.in_features, unit.shape[0]
            kept = width * shares[unit.stem] / stays
            operations += stays * tokens * (_SUMS * width**2 + 3 * width * outputs)
            # in float64: the error before and behind the re-fit, then what is lacking and the equations
            exact = 2 * outputs * width**2
            if cut.refit != "none":
                exact += exact + 2 * kept**2 * outputs + (2 / 3 * kept**3 + 2 * kept**2 * outputs)
            operations += stays * exact / _FLOAT64_RATE
    return operations / rates.product

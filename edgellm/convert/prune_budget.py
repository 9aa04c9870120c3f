"""What pruning holds at its worst moment, and what is left of a limit for hidden states."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.convert.prune_recipe import PruneRecipe
from edgellm.convert.units import units_of
from edgellm.errors import OutOfMemoryError
from edgellm.model import ModelConfig, OpenedModel

#: Tokens whose inputs and outputs of a linear are held together, and buffers as wide as the MLP among them.
_STEP_TOKENS = 8192
_WIDE_BUFFERS = 3
_FORWARD_TOKENS = 2048
_FORWARD_BUFFERS = 6


@dataclass(frozen=True)
class PruneBudget:
    """Bytes: `fixed_bytes` are held at the worst moment, hidden states left out; up to `hidden_bytes` of those are
    held in memory, more of them in a file. `peak_bytes` is what the process holds altogether."""

    fixed_bytes: int
    hidden_bytes: int
    peak_bytes: int


def plan_pruning(
    opened: OpenedModel, recipe: PruneRecipe, shape: tuple[int, int], limit: int | None, process_bytes: int
) -> PruneBudget:
    """The memory of a pruning over calibration ids of `shape` [N, L].

    Raises:
        OutOfMemoryError: it needs more than `limit` even with the hidden states in a file.
    """
    units = [unit for unit in units_of(opened.weights) if unit.layer is not None]
    layer = max((sum(u.size for u in units if u.layer == number) for number in {u.layer for u in units}), default=0)
    config = opened.config
    tokens = shape[0] * shape[1]
    follows = recipe.refit == "source" and recipe.sparsity is None and not config.post_norms
    widest = max(config.intermediate_size, config.num_attention_heads * config.head_dim, config.hidden_size)
    solving = max(_solving_bytes(recipe, *sizes) for sizes in _cut_inputs(recipe, config))
    rows = min(_STEP_TOKENS, tokens)
    summing = 8 * widest * (widest + config.hidden_size) + 4 * rows * (_WIDE_BUFFERS * widest + 4 * config.hidden_size)
    forward = 4 * min(_FORWARD_TOKENS, tokens) * _FORWARD_BUFFERS * widest
    embedding = 4 * config.vocab_size * config.hidden_size
    fixed = process_bytes + max(4 * layer * (1 + follows) + max(solving, summing + forward), embedding)
    hidden = 4 * tokens * config.hidden_size * (1 + follows)
    if limit is not None and fixed > limit:
        hint = "Allow more memory, or prune layers and vocabulary alone."
        raise OutOfMemoryError(f"pruning needs {fixed:,} bytes", key="max_ram", found=f"{limit:,}", hint=hint)
    in_memory = hidden if limit is None or fixed + hidden <= limit else 0
    return PruneBudget(fixed, in_memory, fixed + in_memory)


def _cut_inputs(recipe: PruneRecipe, config: ModelConfig) -> list[tuple[int, int, int]]:
    """(inputs, those that stay at most, outputs) of the linears behind cuts: o_proj and the widest down_proj."""
    heads = config.num_attention_heads * config.head_dim
    width = max(config.mlp_width(layer) for layer in range(config.num_hidden_layers))
    kept_heads = heads * recipe.kept_groups(config) // config.num_key_value_heads
    kept_width = width if recipe.ffn_by_layer else recipe.kept_width(width)
    return [(heads, kept_heads, config.hidden_size), (width, kept_width, config.hidden_size)]


def _solving_bytes(recipe: PruneRecipe, inputs: int, kept: int, outputs: int) -> int:
    """In float64, of scoring inputs and of re-fitting those that stay."""
    # sums, the damped block, LAPACK's copy of it; cross sums; what is lacking, LAPACK's copy of that, the solution
    fitting = inputs**2 + 2 * kept**2 + outputs * (inputs + 3 * kept)
    # sums and cross sums; the damped sums, LAPACK's copy, its right sides, the inverse
    scoring = 5 * inputs**2 + outputs * inputs if recipe.measure == "loss" and kept < inputs else 0
    return 8 * max(fitting, scoring)

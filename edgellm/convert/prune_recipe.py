"""What is to be pruned, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.convert.refit import DEFAULT_RIDGE
from edgellm.convert.scores import MEASURES
from edgellm.convert.sparsity import Sparsity
from edgellm.errors import UsageError
from edgellm.model import ModelConfig

REFITS = ("source", "layer", "none")


@dataclass(frozen=True)
class PruneRecipe:
    """What goes, always so that the runtime runs less.

    Attributes:
        ffn: share of the MLP channels that goes, 0 to below 1.
        ffn_width: MLP channels that stay in each layer, where it has more; in place of `ffn`.
        ffn_multiple: widths that stay are multiples of this; a group size of 128 in a later quantization needs 128.
        ffn_by_layer: let layers have different widths, the same number of channels going altogether. Written as a list
            under `intermediate_size`, which edgellm reads and other engines as a rule do not.
        kv_groups: share of the KV heads that goes in each layer, each with its query heads; the same number in all
            layers, for num_key_value_heads is one number in every engine.
        layers: number of whole layers that go, by block influence. layer_ids: these layers instead.
        measure: how channels and groups are judged, see `scores`.
        refit: how the weights behind a cut are re-fitted by least squares: "source" to what the source's hidden states
            are behind them, so that they also make up for cuts and layers before them; "layer" to what they gave before
            the cut; "none".
        ridge: of the re-fit.
        sparsity: zeros in all linears instead, for research: nothing gets smaller or faster. Not with anything above.
    """

    ffn: float = 0.0
    ffn_width: int | None = None
    ffn_multiple: int = 32
    ffn_by_layer: bool = False
    kv_groups: float = 0.0
    layers: int = 0
    layer_ids: tuple[int, ...] = ()
    measure: str = "energy"
    refit: str = "source"
    ridge: float = DEFAULT_RIDGE
    sparsity: Sparsity | None = None

    def __post_init__(self) -> None:
        for key in ("ffn", "kv_groups"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise UsageError("not a share", key=f"prune.{key}", found=value, allowed="0 to below 1")
        for key, low in (("ffn_multiple", 1), ("layers", 0)):
            value = getattr(self, key)
            if type(value) is not int or value < low:
                raise UsageError("out of range", key=f"prune.{key}", found=value, allowed=f"{low} or more")
        if self.ffn_width is not None and (type(self.ffn_width) is not int or self.ffn_width < 1 or self.ffn):
            allowed = "1 or more, without a share"
            raise UsageError("out of range", key="prune.ffn_width", found=self.ffn_width, allowed=allowed)
        if self.measure not in MEASURES:
            raise UsageError("no such measure", key="prune.measure", found=self.measure, allowed=", ".join(MEASURES))
        if self.refit not in REFITS:
            raise UsageError("no such re-fit", key="prune.refit", found=self.refit, allowed=", ".join(REFITS))
        if not self.ridge > 0:
            raise UsageError("out of range", key="prune.ridge", found=self.ridge, allowed="above 0, such as 0.01")
        if self.sparsity is not None and self.shrinks:
            raise UsageError("zeros and cuts exclude each other", key="prune.sparsity", hint="Make two runs of it.")

    @property
    def shrinks(self) -> bool:
        """Whether anything goes."""
        return bool(self.narrows or self.kv_groups or self.layers or self.layer_ids)

    @property
    def narrows(self) -> bool:
        """Whether MLP channels go."""
        return bool(self.ffn or self.ffn_width)

    def check(self, config: ModelConfig) -> None:
        """Raises `UsageError` where the model cannot be pruned so."""
        layers = config.num_hidden_layers
        for layer in self.layer_ids:
            if type(layer) is not int or not 0 <= layer < layers:
                raise UsageError("no such layer", key="prune.layer_ids", found=layer, allowed=f"0 to {layers - 1}")
        if max(self.layers, len(set(self.layer_ids))) >= layers:
            raise UsageError("no layer would be left", key="prune.layers", found=self.layers, allowed=f"below {layers}")
        if self.kept_groups(config) < config.num_key_value_heads and config.qk_norm == "full":
            hint = "Its norm runs over all heads at once, so that a head cannot go without changing the others."
            raise UsageError("not possible for this architecture", key="prune.kv_groups", hint=hint)

    def kept_groups(self, config: ModelConfig) -> int:
        """KV heads that stay in every layer, at least one."""
        return max(config.num_key_value_heads - round(self.kv_groups * config.num_key_value_heads), 1)

    def kept_width(self, width: int) -> int:
        """Channels that stay of `width`: `ffn_width`, or the nearest multiple, at least one, at most all."""
        if self.ffn_width is not None:
            return min(self.ffn_width, width)
        if not self.ffn:
            return width
        units = max(round(width * (1 - self.ffn) / self.ffn_multiple), 1)
        return min(units * self.ffn_multiple, width)

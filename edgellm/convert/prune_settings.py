"""What a recipe's [prune] asks for, in the words of people: shares or counts, before a model says what that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from edgellm.convert.prune_recipe import REFITS, PruneRecipe
from edgellm.convert.refit import DEFAULT_RIDGE
from edgellm.convert.scores import MEASURES
from edgellm.convert.sparsity import Sparsity
from edgellm.errors import UsageError
from edgellm.model import ModelConfig

#: Share of the MLP channels that goes where pruning is asked for and nothing else is said.
DEFAULT_FFN = 0.2
_MULTIPLE = 32


@dataclass(frozen=True)
class PruneSettings:
    """What goes before a model is quantized.

    Attributes:
        ffn: below 1 the share of the MLP channels that goes, a whole number the width that stays in each layer.
        kv_groups: below 1 the share of the KV heads that goes in each layer, a whole number how many of them; each with
            its query heads.
        layers: how many whole layers go, or the numbers of those.
        vocabulary: texts or JSONL; all tokens go that they do not need. Empty leaves the vocabulary.
        refit, ffn_by_layer, measure, ridge: see `PruneRecipe`.
        ffn_multiple: what widths that stay are multiples of; None takes 32, or the group size where that is more.
        sparsity: see `PruneRecipe`.

    Raises:
        UsageError: a value outside its range, or nothing would go.
    """

    ffn: float | int = 0
    kv_groups: float | int = 0
    layers: int | tuple[int, ...] = 0
    vocabulary: tuple[str, ...] = ()
    refit: str = "source"
    ffn_multiple: int | None = None
    ffn_by_layer: bool = False
    measure: str = "energy"
    ridge: float = DEFAULT_RIDGE
    sparsity: Sparsity | None = None

    def __post_init__(self) -> None:
        for key in ("ffn", "kv_groups"):
            found = getattr(self, key)
            whole = type(found) is int and found >= 0
            if not whole and not (isinstance(found, float) and 0 <= found < 1):
                raise UsageError(
                    "out of range", key=f"prune.{key}", found=found, allowed=f"0 to below 1, {_WHOLE[key]}"
                )
        layers = self.layers if isinstance(self.layers, tuple) else (self.layers,)
        if any(type(layer) is not int or layer < 0 for layer in layers):
            raise UsageError(
                "not layers", key="prune.layers", found=self.layers, allowed="how many, or a list of numbers"
            )
        if not all(isinstance(path, str) and path for path in self.vocabulary):
            raise UsageError("not names of files", key="prune.vocabulary", found=list(self.vocabulary))
        if type(self.ffn_by_layer) is not bool:
            raise UsageError("not a flag", key="prune.ffn_by_layer", found=self.ffn_by_layer, allowed="true, false")
        for key, allowed in (("refit", REFITS), ("measure", MEASURES)):
            if getattr(self, key) not in allowed:
                found = getattr(self, key)
                raise UsageError("not supported", key=f"prune.{key}", found=found, allowed=", ".join(allowed))
        if isinstance(self.ridge, bool) or not isinstance(self.ridge, (int, float)) or not self.ridge > 0:
            raise UsageError("out of range", key="prune.ridge", found=self.ridge, allowed="above 0, such as 0.01")
        multiple = self.ffn_multiple
        if multiple is not None and (type(multiple) is not int or multiple < 1):
            raise UsageError("out of range", key="prune.ffn_multiple", found=multiple, allowed="1 or more")
        if not self.cuts and not self.vocabulary:
            raise UsageError("nothing would go", key="prune", allowed="ffn, kv_groups, layers or vocabulary above 0")

    @classmethod
    def of(cls, values: Any, where: str | None = None) -> PruneSettings:
        """Settings from a table; true, or a table that names nothing to cut, takes a fifth of the MLP channels.

        Raises:
            UsageError: a key that does not exist, or see the class; `where` names the file.
        """
        given = {} if values is True else values
        if not isinstance(given, Mapping):
            raise UsageError("not a table", file=where, key="prune", found=values)
        given = {key: value for key, value in given.items() if value is not None}
        known = [item.name for item in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise UsageError("no such setting", file=where, key=f"prune.{unknown[0]}", allowed=", ".join(known))
        if not set(given) & {"ffn", "kv_groups", "layers", "vocabulary", "sparsity"}:
            given["ffn"] = DEFAULT_FFN
        if isinstance(given.get("layers"), list):
            given["layers"] = tuple(given["layers"])
        if "vocabulary" in given:
            paths = given["vocabulary"]
            given["vocabulary"] = (paths,) if isinstance(paths, str) else _tuple(paths, "prune.vocabulary")
        if "sparsity" in given:
            given["sparsity"] = _sparsity(given["sparsity"])
        return cls(**given)

    @property
    def cuts(self) -> bool:
        """Whether anything but the vocabulary changes, which takes calibration tokens."""
        return bool(self.ffn or self.kv_groups or self.layers or self.sparsity)

    def recipe(self, config: ModelConfig, group_size: int | None) -> PruneRecipe:
        """What that is for a model; `group_size` is that of a quantization behind it, None without one.

        Raises:
            UsageError: the model cannot be pruned so.
        """
        groups: float = self.kv_groups
        if type(groups) is int:
            if groups >= config.num_key_value_heads:
                allowed = f"below {config.num_key_value_heads}"
                raise UsageError("no KV head would be left", key="prune.kv_groups", found=groups, allowed=allowed)
            groups = groups / config.num_key_value_heads
        width = self.ffn if type(self.ffn) is int and self.ffn else None
        widest = max(config.mlp_width(layer) for layer in range(config.num_hidden_layers))
        if width is not None and width > widest:
            raise UsageError("wider than the model is", key="prune.ffn", found=width, allowed=f"up to {widest}")
        ids = self.layers if isinstance(self.layers, tuple) else ()
        found = PruneRecipe(
            ffn=0.0 if width is not None else self.ffn,
            ffn_width=width,
            ffn_multiple=self.ffn_multiple or max(_MULTIPLE, group_size or 0),
            ffn_by_layer=self.ffn_by_layer,
            kv_groups=groups,
            layers=0 if isinstance(self.layers, tuple) else self.layers,
            layer_ids=ids,
            measure=self.measure,
            refit=self.refit,
            ridge=self.ridge,
            sparsity=self.sparsity,
        )
        found.check(config)
        return found


_WHOLE = {"ffn": "or the width that stays", "kv_groups": "or how many go"}


def _tuple(values: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(values, (list, tuple)):
        raise UsageError("not a list", key=key, found=values)
    return tuple(values)


def _sparsity(values: Any) -> Sparsity:
    if isinstance(values, Sparsity):
        return values
    if not isinstance(values, Mapping) or set(values) - {item.name for item in fields(Sparsity)}:
        allowed = ", ".join(item.name for item in fields(Sparsity))
        raise UsageError("not settings of sparsity", key="prune.sparsity", found=values, allowed=allowed)
    given = dict(values)
    if given.get("pattern") is not None:
        given["pattern"] = _tuple(given["pattern"], "prune.sparsity.pattern")
    return Sparsity(**given)

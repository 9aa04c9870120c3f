"""Which linear gets which scheme: the recipe's, an override's, what a bit budget gives, or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from edgellm.convert.recipe import Recipe
from edgellm.convert.scheme import GROUP_SIZES, Scheme
from edgellm.convert.units import Unit
from edgellm.errors import UsageError
from edgellm.formats import awq
from edgellm.formats.bits import WORD_BITS
from edgellm.formats.patterns import ModuleTable

#: GPTQ stores 16 bits of scale and the bits of a zero point with each group.
_SCALE_BITS = 16
_DIVIDING = sorted((size for size in GROUP_SIZES if size > 0), reverse=True)


@dataclass(frozen=True)
class Assignment:
    """Schemes by the file's name of a linear.

    Attributes:
        default: what most have, and what the output's config says.
        schemes: of each unit; None leaves it in floating point.
        notes: what was changed, for people.
    """

    default: Scheme
    schemes: Mapping[str, Scheme | None]
    notes: tuple[str, ...] = ()

    def bits_per_weight(self, units: Iterable[Unit]) -> float:
        """Average bits of the weights that are quantized, scales and zero points counted."""
        total = bits = 0.0
        for unit in units:
            scheme = self.schemes[unit.stem]
            if scheme is not None:
                total += unit.size
                bits += unit.size * stored_bits(scheme, unit.in_features)
        return bits / total if total else 0.0


def stored_bits(scheme: Scheme, in_features: int) -> float:
    """Bits of a weight with its share of the group's scale and zero point."""
    return scheme.bits + (_SCALE_BITS + scheme.bits) / scheme.group_width(in_features)


def assign(recipe: Recipe, units: Iterable[Unit]) -> Assignment:
    """Schemes of all units.

    A group size that does not divide every linear's inputs is lowered for all of them to the largest that does: other
    engines read nothing else. A linear whose codes do not fill the format's words stays in floating point.

    Raises:
        UsageError: an override names no module.
        ModelError: an override's expression could take too long.
    """
    units = list(units)
    notes: list[str] = []
    default = _dividing(recipe.scheme, [unit for unit in units if unit.layer is not None], notes)
    table = ModuleTable("the recipe", "overrides")
    for name, settings in recipe.overrides.items():
        table.add(name, (name, settings))
    schemes: dict[str, Scheme | None] = {}
    used: set[str] = set()
    for unit in units:
        scheme: Scheme | None = default
        if unit.layer is None:
            scheme = None if recipe.lm_head_bits is None else replace(default, bits=recipe.lm_head_bits)
        found = table.find(unit.stem)
        if found is not None:
            used.add(found[0])
            given = recipe.overridden(found[1])
            scheme = (
                given if given is None or "group_size" in found[1] else replace(given, group_size=default.group_size)
            )
        if scheme is not None and not _fits(recipe.packing, scheme, unit):
            notes.append(f"{unit.stem} stays in floating point: its {unit.shape} codes do not fill words of 32 bits")
            scheme = None
        schemes[unit.stem] = scheme
    unused = sorted(set(recipe.overrides) - used)
    if unused:
        example = units[0].stem if units else "none"
        raise UsageError("names no linear of this model", key=f"overrides.{unused[0]}", allowed=f"such as {example}")
    return Assignment(default, schemes, tuple(notes))


def _dividing(scheme: Scheme, units: list[Unit], notes: list[str]) -> Scheme:
    widths = {unit.in_features for unit in units}
    if scheme.group_size == -1 or all(width % scheme.group_size == 0 for width in widths):
        return scheme
    for size in _DIVIDING:
        if size < scheme.group_size and all(width % size == 0 for width in widths):
            notes.append(
                f"group_size {size} in place of {scheme.group_size}, which does not divide {min(widths)} inputs"
            )
            return replace(scheme, group_size=size)
    notes.append("no group size divides all inputs: the last groups are short, and other engines may refuse the file")
    return scheme


def _fits(packing: str, scheme: Scheme, unit: Unit) -> bool:
    outputs, inputs = unit.shape
    if packing == "awq":
        return outputs % awq.NIBBLES == 0
    return inputs * scheme.bits % WORD_BITS == 0 and outputs * scheme.bits % WORD_BITS == 0

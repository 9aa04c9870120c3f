"""Bits for each linear under an average: losses are measured on calibration tokens, and their sum made least."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edgellm.convert.assignment import Assignment, assign
from edgellm.convert.blocks import BlockRunner
from edgellm.convert.calibration import Calibration
from edgellm.convert.hessian import Hessian
from edgellm.convert.mixed import Option, allocate, measure_options
from edgellm.convert.patched import PatchedWeights
from edgellm.convert.recipe import Recipe
from edgellm.convert.scheme import BITS, Scheme
from edgellm.convert.sequential import Sequential
from edgellm.convert.units import Unit
from edgellm.formats.bits import WORD_BITS
from edgellm.model import Op, OpenedModel

#: Sequences that the losses are measured on: they rank linears, which needs fewer than quantizing them.
_SEQUENCES = 16


def assign_by_budget(opened: OpenedModel, recipe: Recipe, units: list[Unit], calibration: Calibration) -> Assignment:
    """Schemes that meet `recipe.average_bits` over the decoder layers' linears, scales and zero points counted.

    Linears that share an input get equal bits, as engines that fuse them want; linears that an override names keep
    what it gives and do not count, nor does lm_head.

    Raises:
        UsageError: the average is below the fewest bits, or see `assign`.
        NumericalError: see `measure_options`.
    """
    plain = assign(replace(recipe, average_bits=None), units)
    named = assign(replace(recipe, average_bits=None, overrides={}), units)
    free = [
        unit
        for unit in units
        if unit.layer is not None
        and plain.schemes[unit.stem] is not None
        and plain.schemes[unit.stem] == named.schemes[unit.stem]
    ]
    found = _Survey(opened, plain.default, free).run(calibration.token_ids[:_SEQUENCES])
    chosen = allocate(found.options, {unit.stem: unit.size for unit in free}, recipe.average_bits, tied=found.tied)
    schemes = {**plain.schemes, **{stem: option.scheme for stem, option in chosen.chosen.items()}}
    note = f"average of {chosen.average_bits:.2f} bits over {len(free)} linears"
    return Assignment(plain.default, schemes, (*plain.notes, note))


class _Survey:
    """Losses of all options, layer by layer, with the weights as they are."""

    def __init__(self, opened: OpenedModel, default: Scheme, units: list[Unit]) -> None:
        self.options: dict[str, list[Option]] = {}
        self.tied: list[list[str]] = []
        self._default = default
        self._units = {name: unit for unit in units for name in unit.names}
        self._weights = PatchedWeights(opened.weights)
        self._runner = BlockRunner(opened, self._weights)
        self._hessian: Hessian | None = None

    def run(self, token_ids: np.ndarray) -> _Survey:
        with TemporaryDirectory(prefix="edgellm-") as folder:
            states = Sequential(self._runner, Path(folder), memory_bytes=1 << 28)
            states.begin(token_ids)
            last = self._runner.num_layers - 1
            for layer in range(last + 1):
                states.staged(layer, self._tap, self._shown, onward=layer < last)
            states.close()
        return self

    def _tap(self, names: tuple[str, ...], x: np.ndarray) -> None:
        if not any(name in self._units for name in names):
            return
        if self._hessian is None:
            self._hessian = Hessian(x.shape[1], names[0])
        self._hessian.add(x)

    def _shown(self, linear: Op) -> None:
        hessian, self._hessian = self._hessian, None
        units = list(dict.fromkeys(self._units[name] for name in linear.weights if name in self._units))
        if hessian is None or not units:
            return
        fitting = [bits for bits in BITS if all(_packs(unit, bits) for unit in units)]
        schemes = [replace(self._default, bits=bits) for bits in fitting]
        for unit in units:
            self.options[unit.stem] = measure_options(unit.weight(self._weights), hessian.matrix(), schemes)
        if len(units) > 1:
            self.tied.append([unit.stem for unit in units])


def _packs(unit: Unit, bits: int) -> bool:
    return all(size * bits % WORD_BITS == 0 for size in unit.shape)

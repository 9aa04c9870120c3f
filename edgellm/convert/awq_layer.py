"""One decoder layer by AWQ: watch it as it is, scale and fold, clip, round, and go on with what that gives."""

from __future__ import annotations

import numpy as np

from edgellm.convert.awq import search_scales
from edgellm.convert.awq_fold import Fold, find_folds, fold_scales
from edgellm.convert.clip import search_clip
from edgellm.convert.job import Job, Piece
from edgellm.convert.patched import PatchedWeights, as_stored
from edgellm.convert.quantizers import Sink, naming, report_of
from edgellm.convert.rtn import quantize_rtn
from edgellm.convert.sequential import Sequential
from edgellm.convert.units import Unit
from edgellm.errors import NumericalError

#: Rows of a linear's input that the searches judge by, drawn evenly from all calibration tokens.
_SAMPLE_ROWS = 512
#: AWQ clips no range of these: an error of their products is not one of their outputs.
_NOT_CLIPPED = ("self_attn.q_proj", "self_attn.k_proj")


class InputSample:
    """Mean |x| of each channel over all tokens, and some rows.

    Args:
        width: channels. tokens: how many will be shown.
    """

    def __init__(self, width: int, tokens: int) -> None:
        self._absolute = np.zeros(width, np.float64)
        self._seen = 0
        self._every = max(1, tokens // _SAMPLE_ROWS)
        self._rows: list[np.ndarray] = []

    def add(self, x: np.ndarray, name: str) -> None:
        """Take more tokens, float32 [n, width]. Raises `NumericalError`."""
        sums = np.abs(x).sum(axis=0, dtype=np.float64)
        if not np.isfinite(sums).all():
            raise NumericalError("the activations into it are NaN or infinite", key=name)
        self._absolute += sums
        first = -self._seen % self._every
        self._rows.append(x[first :: self._every].copy())
        self._seen += len(x)

    @property
    def mean_abs(self) -> np.ndarray:
        """float32 [width]."""
        return (self._absolute / max(self._seen, 1)).astype(np.float32)

    @property
    def rows(self) -> np.ndarray:
        """float32 [n, width]."""
        return np.concatenate(self._rows)


class AwqLayer:
    """A layer's linears by AWQ."""

    def __init__(self, job: Job, piece: Piece, weights: PatchedWeights, sink: Sink) -> None:
        self._job, self._piece, self._weights, self._sink = job, piece, weights, sink
        self._units = {name: unit for unit in piece.units for name in unit.names}
        self._samples: dict[str, InputSample] = {}
        self._scaled: dict[str, np.ndarray] = {}
        self._tokens = 0

    def run(self, layer: int, states: Sequential, *, onward: bool) -> None:
        """Quantize the layer and, where `onward`, take the hidden states through it."""
        self._tokens = states.hidden.shape[0] * states.hidden.shape[1]
        states.watched(layer, self._tap)
        for fold in find_folds(self._job.opened.weights.program):
            if fold.layer == layer:
                self._fold(fold)
        for unit in self._piece.units:
            self._quantize(unit)
        if onward:
            states.passed(layer)

    def _tap(self, names: tuple[str, ...], x: np.ndarray) -> None:
        sample = self._samples.get(names[0]) or InputSample(x.shape[1], self._tokens)
        sample.add(x, names[0])
        self._samples.update(dict.fromkeys(names, sample))

    def _fold(self, fold: Fold) -> None:
        """Find a fold's scales and put them into the weights; none where one of its linears stays as it is."""
        units = [self._units.get(name) for name in fold.linears]
        if any(unit is None for unit in units):
            return
        sample = self._samples[fold.linears[0]]
        weights = {name: self._weights.float32(name) for name in fold.linears}
        with naming(units[0]):
            found = search_scales(
                list(weights.values()), sample.mean_abs, sample.rows, self._job.scheme(units[0]), fold=fold
            )
        norm = fold.offset is not None
        weights[fold.source] = self._weights.vector(fold.source) if norm else self._weights.float32(fold.source)
        bias = None if norm else self._weights.bias(fold.source)
        biases = {} if bias is None else {fold.source: bias}
        fold_scales(fold, found.scales, weights, biases)
        if norm:  # as the file will hold it, so that the hidden states are those of the file
            weights[fold.source] = as_stored(weights[fold.source], self._job.opened.weights.stored_dtype(fold.source))
        for name, weight in weights.items():
            self._weights.replace(name, weight)
        for name, values in biases.items():
            self._weights.replace_bias(name, values)
        self._scaled.update(dict.fromkeys(fold.linears, found.scales))

    def _quantize(self, unit: Unit) -> None:
        scheme, sample = self._job.scheme(unit), self._samples[unit.names[0]]
        weight = unit.weight(self._weights)
        limits = None
        with naming(unit):
            if not any(name.endswith(_NOT_CLIPPED) for name in unit.names):
                scales = self._scaled.get(unit.names[0])
                limits = search_clip(weight, sample.rows if scales is None else sample.rows / scales, scheme)
            tensor = quantize_rtn(weight, scheme, limits=limits)
        unit.replace(self._weights, tensor)
        self._sink(unit, tensor, report_of(unit, weight, tensor))

"""The linears of a piece quantized: by rounding one after the other, or by GPTQ as calibration reaches them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgellm.convert.allocator import give_back_freed
from edgellm.convert.gptq import Factor, factor_hessian, quantize_gptq
from edgellm.convert.hessian import Hessian
from edgellm.convert.job import Job, Piece
from edgellm.convert.patched import PatchedWeights
from edgellm.convert.rtn import quantize_rtn
from edgellm.convert.sequential import Sequential
from edgellm.convert.units import Unit
from edgellm.errors import EdgeLLMError
from edgellm.formats import QuantizedTensor
from edgellm.model import Op


@dataclass(frozen=True)
class LinearReport:
    """What quantizing one linear cost.

    Attributes:
        name: of the linear in the file.
        bits, group_size: of its codes.
        error: |W - W'| / |W|, Frobenius.
        loss: squared error of its outputs summed over the calibration tokens as GPTQ counts it, None without
            calibration.
        damp_percent: GPTQ's dampening, where it was used.
    """

    name: str
    bits: int
    group_size: int
    error: float
    loss: float | None = None
    damp_percent: float | None = None


#: Called with each quantized linear, its tensor and its report.
Sink = Callable[[Unit, QuantizedTensor, LinearReport], None]


def quantize_by_rtn(job: Job, piece: Piece, weights: PatchedWeights, sink: Sink) -> None:
    """Round every linear of a piece, one in memory at a time."""
    for unit in piece.units:
        weight = unit.weight(weights)
        with naming(unit):
            tensor = quantize_rtn(weight, job.scheme(unit))
        sink(unit, tensor, report_of(unit, weight, tensor))


class GptqLayer:
    """A layer's linears by GPTQ, each calibrated with what the ones before it in the layer give."""

    def __init__(self, job: Job, piece: Piece, weights: PatchedWeights, sink: Sink) -> None:
        self._job, self._weights, self._sink = job, weights, sink
        self._units = {name: unit for unit in piece.units for name in unit.names}
        self._hessians: dict[tuple[str, ...], Hessian] = {}

    def run(self, layer: int, states: Sequential, *, onward: bool) -> None:
        """Quantize the layer and, where `onward`, take the hidden states through all of it."""
        if self._job.recipe.true_sequential:
            states.staged(layer, self._tap, self._shown, onward=onward)
            return
        states.watched(layer, self._tap)
        for names in list(self._hessians):
            self._quantize(names)
        if onward:
            states.passed(layer)

    def run_head(self, states: Sequential) -> None:
        """Quantize lm_head."""
        states.ended(self._tap)
        for names in list(self._hessians):
            self._quantize(names)

    def _tap(self, names: tuple[str, ...], x: np.ndarray) -> None:
        if not any(name in self._units for name in names):
            return
        if names not in self._hessians:
            self._hessians[names] = Hessian(x.shape[1], names[0])
        self._hessians[names].add(x)

    def _shown(self, linear: Op) -> None:
        if linear.weights in self._hessians:
            self._quantize(linear.weights)

    def _quantize(self, names: tuple[str, ...]) -> None:
        """All units that read one input: they share its Hessian, and act-order's factor."""
        hessian = self._hessians.pop(names)
        units = list(dict.fromkeys(self._units[name] for name in names if name in self._units))
        factors: dict[bool, Factor] = {}
        matrix = hessian.matrix()
        give_back_freed()  # the factor is as large as the arrays of many steps
        for desc_act in sorted({self._job.scheme(unit).desc_act for unit in units}):
            with naming(units[0]):
                damp = self._job.recipe.damp_percent
                factors[desc_act] = factor_hessian(matrix, desc_act=desc_act, damp_percent=damp)
        del hessian, matrix  # the largest arrays of all; the factor is all that quantizing needs
        for unit in units:
            scheme = self._job.scheme(unit)
            weight = unit.weight(self._weights)
            with naming(unit):
                result = quantize_gptq(weight, factors[scheme.desc_act], scheme)
            report = report_of(unit, weight, result.tensor, result.loss, result.damp_percent_used)
            unit.replace(self._weights, result.tensor)
            self._sink(unit, result.tensor, report)


class naming:
    """An error raised inside gets the linear's name, where it does not say one."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, EdgeLLMError) and self._unit.stem not in (error.key or ""):
            error.key = self._unit.stem if error.key is None else f"{self._unit.stem} {error.key}"


def report_of(
    unit: Unit, weight: np.ndarray, tensor: QuantizedTensor, loss: float | None = None, damp: float | None = None
) -> LinearReport:
    """The report of one linear; weight float32 [out, in] before, tensor after."""
    return LinearReport(unit.stem, tensor.bits, tensor.group_size, relative_error(weight, tensor), loss, damp)


def relative_error(weight: np.ndarray, tensor: QuantizedTensor) -> float:
    """|W - W'| / |W|, Frobenius, over a sample of rows where there are many: it is for people."""
    step = max(1, len(weight) // 256)
    part = QuantizedTensor(
        np.ascontiguousarray(tensor.codes[::step]), np.ascontiguousarray(tensor.scales[::step]),
        np.ascontiguousarray(tensor.zeros[::step]), tensor.bits, tensor.group_size, tensor.permutation,
    )  # fmt: skip
    sample = weight[::step].astype(np.float64)
    norm = float(np.linalg.norm(sample))
    return float(np.linalg.norm(sample - part.dequantize())) / norm if norm else 0.0

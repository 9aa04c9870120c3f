"""What a conversion will write, hold and take: sizes from headers, time from a trial of this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgellm.convert.budget import Budget
from edgellm.convert.calibration import Calibration
from edgellm.convert.job import Job
from edgellm.convert.rtn import quantize_rtn
from edgellm.convert.scheme import Scheme
from edgellm.convert.units import Unit

_TRIAL = 1536  # rows and columns of the matrices that are multiplied for a trial
_TRIAL_S = 0.5
#: float64 factorizations (2/3 in**3 operations) run at about this share of the float32 product's rate.
_FACTOR_RATE = 0.38
#: GPTQ's columns one by one, and attention's softmax, in seconds a billion elements of a 2-core machine's trial.
_COLUMN_OPERATIONS = 40


@dataclass(frozen=True)
class Forecast:
    """Sizes in bytes, time in seconds.

    Attributes:
        source_bytes, output_bytes: of the tensors.
        bits_per_weight: of quantized weights, scales and zero points counted.
        quantized_weights: how many.
        calibration_tokens: 0 where none are needed.
        peak_bytes: of memory, as planned; `peak_at` says at what.
        disk_bytes: free space that is needed: the output, and activations that memory does not hold.
        seconds: about, by a trial of this machine; None where nothing was tried.
        gflops: float32 products of the trial.
        notes: what a person should know.
    """

    source_bytes: int
    output_bytes: int
    bits_per_weight: float
    quantized_weights: int
    calibration_tokens: int
    peak_bytes: int
    peak_at: str
    disk_bytes: int
    seconds: float
    gflops: float
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return {**asdict(self), "notes": list(self.notes)}


@dataclass(frozen=True)
class Rates:
    """What this machine does: float32 operations a second in products, weights rounded a second."""

    product: float
    rounding: float


def foresee(job: Job, calibration: Calibration | None, budget: Budget, rates: Rates | None = None) -> Forecast:
    """The forecast of a job; `rates` are tried where not given."""
    rates = rates or try_rates(next(scheme for scheme in job.assignment.schemes.values() if scheme is not None))
    tokens = 0 if calibration is None else calibration.tokens
    notes = [*job.assignment.notes, *(() if calibration is None else calibration.notes)]
    units = [unit for unit in job.units if job.scheme(unit) is not None]
    checkpoint = job.opened.checkpoint
    return Forecast(
        source_bytes=sum(info.nbytes for info in checkpoint.tensors.values()),
        output_bytes=job.nbytes,
        bits_per_weight=job.assignment.bits_per_weight(job.units),
        quantized_weights=sum(unit.size for unit in units),
        calibration_tokens=tokens,
        peak_bytes=budget.peak_bytes,
        peak_at=budget.largest,
        disk_bytes=job.nbytes + budget.spilled_bytes,
        seconds=_seconds(job, units, tokens, rates),
        gflops=rates.product / 1e9,
        notes=tuple(notes),
    )


def try_rates(scheme: Scheme) -> Rates:
    """Multiply and round for about a second in all."""
    random = np.random.default_rng(0)
    a = random.standard_normal((_TRIAL, _TRIAL), np.float32)
    quantize_rtn(a[:64], scheme)  # compiles
    products = _per_second(lambda: a @ a) * 2 * _TRIAL**3
    return Rates(products, _per_second(lambda: quantize_rtn(a, scheme)) * a.size)


def _per_second(work: Any) -> float:
    work()
    start, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < _TRIAL_S:
        work()
        count += 1
    return count / spent


def _seconds(job: Job, units: Iterable[Unit], tokens: int, rates: Rates) -> float:
    method = job.recipe.method
    total = 0.0
    squares: set[tuple[int | None, int, str]] = set()  # inputs that units share are counted once
    for unit in units:
        size, width = unit.size, unit.in_features
        total += size / rates.rounding * (1 if method == "rtn" else 30 if method == "awq" else 2)
        if method == "rtn":
            continue
        passes = 1 if method == "gptq" and job.recipe.true_sequential else 2
        total += passes * 2 * tokens * size / rates.product
        if method == "awq":
            total += 80 * 512 * size / rates.product  # 40 scales tried on 512 rows
            continue
        total += unit.shape[0] * width**2 * 1.3 / rates.product
        shared = (unit.layer, width, _input_of(unit))
        if shared not in squares:
            squares.add(shared)
            total += 1.1 * tokens * width**2 / rates.product
            total += 2 / 3 * width**3 / (_FACTOR_RATE * rates.product)
    if method != "rtn":
        config = job.opened.config
        scores = config.num_attention_heads * tokens * min(job.recipe.sequence_length, 128 * 3)
        total += config.num_hidden_layers * scores * (_COLUMN_OPERATIONS + 4 * config.head_dim) / rates.product
    return total


def _input_of(unit: Unit) -> str:
    leaf = unit.leaf.rsplit(".", 1)[-1]
    return {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}.get(
        leaf, leaf
    )

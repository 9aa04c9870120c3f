"""What a conversion will write, hold and take: sizes from headers, time from a trial of this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
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
#: Bytes read for a trial, and what a disk writes at most, bytes a second: a dry run writes nothing that could be timed.
_TRIAL_BYTES = 32 << 20
_WRITING_RATE = 5e8


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
    """What this machine does a second: float32 operations in products, weights rounded, bytes of the source read."""

    product: float
    rounding: float
    reading: float = math.inf

    def seconds_on_disk(self, read: float, written: float) -> float:
        """Of so many bytes; writing is taken to be as fast as reading, up to 500 MB/s."""
        return read / self.reading + written / min(self.reading, _WRITING_RATE)


def foresee(job: Job, calibration: Calibration | None, budget: Budget, rates: Rates | None = None) -> Forecast:
    """The forecast of a job; `rates` are tried where not given."""
    tried = next(scheme for scheme in job.assignment.schemes.values() if scheme is not None)
    rates = rates or try_rates(tried, job.opened.checkpoint.files)
    tokens = 0 if calibration is None else calibration.tokens
    notes = [*job.assignment.notes, *(() if calibration is None else calibration.notes)]
    units = [unit for unit in job.units if job.scheme(unit) is not None]
    source_bytes = sum(info.nbytes for info in job.opened.checkpoint.tensors.values())
    return Forecast(
        source_bytes=source_bytes,
        output_bytes=job.nbytes,
        bits_per_weight=job.assignment.bits_per_weight(job.units),
        quantized_weights=sum(unit.size for unit in units),
        calibration_tokens=tokens,
        peak_bytes=budget.peak_bytes,
        peak_at=budget.largest,
        disk_bytes=job.nbytes + budget.spilled_bytes,
        seconds=_seconds(job, units, tokens, rates) + rates.seconds_on_disk(source_bytes, job.nbytes),
        gflops=rates.product / 1e9,
        notes=tuple(notes),
    )


def try_rates(scheme: Scheme, files: Sequence[Path]) -> Rates:
    """Multiply and round for about a second in all, and read some of the source's files."""
    random = np.random.default_rng(0)
    a = random.standard_normal((_TRIAL, _TRIAL), np.float32)
    quantize_rtn(a[:64], scheme)  # compiles
    products = _per_second(lambda: a @ a) * 2 * _TRIAL**3
    return Rates(products, _per_second(lambda: quantize_rtn(a, scheme)) * a.size, _reading_rate(files))


def _reading_rate(files: Sequence[Path]) -> float:
    """Bytes a second from the middle of the largest file, which no other command has touched yet, as a rule."""
    path = max(files, key=lambda file: file.stat().st_size)
    with open(path, "rb", buffering=0) as file:
        file.seek(path.stat().st_size // 2)
        start = time.perf_counter()
        count = len(file.read(_TRIAL_BYTES))
    return count / max(time.perf_counter() - start, 1e-9)


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

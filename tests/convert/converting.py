"""Conversions of tiny models, straight through the pipeline: what the converter's tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgellm.convert.blocks import BlockRunner
from edgellm.convert.calibration import Calibration
from edgellm.convert.job import make_job
from edgellm.convert.pipeline import ConversionResult, run_job
from edgellm.convert.recipe import make_recipe
from edgellm.model import open_model
from tests.golden_models import cases


def golden(name: str) -> Path:
    """The folder of a golden model."""
    return next(case.folder for case in cases() if case.name == name)


def tokens(sequences: int = 8, length: int = 24, vocab: int = 60) -> Calibration:
    """Random calibration tokens."""
    random = np.random.default_rng(5)
    return Calibration(random.integers(3, vocab, (sequences, length), dtype=np.int32), "random")


def convert(
    source: Path, out: Path, *, resume: bool = False, overwrite: bool = False, **settings: Any
) -> ConversionResult:
    """`source` converted to `out` with the settings of a recipe."""
    with open_model(source) as model:
        job = make_job(model, make_recipe(settings))
        calibration = None if job.recipe.method == "rtn" else tokens()
        return run_job(
            job, out, calibration=calibration, source_digest="source", resume=resume, overwrite=overwrite
        )  # fmt: skip


def logits(folder: Path, ids: np.ndarray) -> np.ndarray:
    """Logits float32 [N, L, V] of token ids int32 [N, L]."""
    with open_model(folder) as model:
        runner = BlockRunner(model)
        x = runner.embed(ids)
        for layer in range(runner.num_layers):
            x = runner.block(layer, x)
        return runner.logits(x)


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of a folder's files by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

"""Make tests/golden: tiny random models of every architecture and what transformers computes with them.

    python tools/make_golden.py [--folder tests/golden] [--only NAME ...]

Needs torch and transformers; the tests read the committed files and need neither. A case's seed counts up from 0 until
greedy decoding is a fair test (no near tie at any step) and nothing about the model is degenerate. The same versions on
the same machine give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
import transformers
from golden.cases import CASES, Case
from golden.reference import Arrays, attention_peak, logits_of, prompts, reference_arrays
from golden.weights import load_model, save_model, write_json

SMALLEST_MARGIN = 0.02  # logits; float16 keys and values move logits of this size by a few 1e-3
SMALLEST_LOGIT_STD = 1.2
FEWEST_DISTINCT = 16  # of the 2 x 48 greedy ids
ATTENTION_PEAK = (0.1, 0.9)
ABLATION_ERROR = 1e-2  # relative to the largest logit
MOST_SEEDS = 200


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """max |found - expected| / max |expected|"""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def facts_of(folder: Path, case: Case, seed: int, arrays: Arrays) -> dict[str, float]:
    """The figures a seed is judged by, kept in the index."""
    model = load_model(folder)
    long_ids = prompts(seed)[0]
    expected = logits_of(model, long_ids)
    newest = "config.json" if case.config_version == 5 else "config.v5.json"  # the spelling ablations are written in
    ablated = [logits_of(load_model(folder, newest, changes), long_ids) for changes in case.ablations]
    facts = {
        "greedy_margin": min(float(arrays[f"greedy_margin_{n}"].min()) for n in (0, 1)),
        "greedy_distinct": len(np.unique(np.concatenate([arrays["greedy_0"], arrays["greedy_1"]]))),
        "logit_std": float(expected.std(-1).mean()),
        "attention_peak": attention_peak(model, long_ids),
        "ablation_error": min((relative_error(logits, expected) for logits in ablated), default=None),
    }
    return {key: value if value is None else round(value, 4) for key, value in facts.items()}


def is_fair(arrays: Arrays, facts: dict[str, Any]) -> bool:
    """Whether the figures prove a model that tests every part of an implementation."""
    return (
        all(np.isfinite(array).all() for array in arrays.values())
        and facts["greedy_distinct"] >= FEWEST_DISTINCT
        and facts["logit_std"] >= SMALLEST_LOGIT_STD
        and ATTENTION_PEAK[0] <= facts["attention_peak"] <= ATTENTION_PEAK[1]
        and (facts["ablation_error"] is None or facts["ablation_error"] >= ABLATION_ERROR)
    )


def check_other_spelling(folder: Path, case: Case, seed: int) -> None:
    """Raise unless both spellings of the config give the very same logits."""
    long_ids = prompts(seed)[0]
    other = f"config.v{9 - case.config_version}.json"
    if not np.array_equal(logits_of(load_model(folder), long_ids), logits_of(load_model(folder, other), long_ids)):
        raise RuntimeError(f"{case.name}: {other} means another model than config.json")


def make_case(case: Case, folder: Path) -> dict[str, Any]:
    """Write one case into `folder` and return its row of the index."""
    for seed in range(MOST_SEEDS):
        shutil.rmtree(folder, ignore_errors=True)
        save_model(case, seed, folder)
        arrays = reference_arrays(load_model(folder), seed)
        if min(arrays["greedy_margin_0"].min(), arrays["greedy_margin_1"].min()) < SMALLEST_MARGIN:
            continue
        facts = facts_of(folder, case, seed, arrays)
        if is_fair(arrays, facts):
            break
        print(f"{case.name}: seed {seed} refused: {facts}")
    else:
        raise RuntimeError(f"{case.name}: no fair seed below {MOST_SEEDS}")
    check_other_spelling(folder, case, seed)
    np.savez(folder / "reference.npz", **arrays)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{case.name}: seed {seed}, {size:,} bytes, {facts}")
    row = {"name": case.name, "description": case.description, "stage": case.stage}
    return row | {"model_type": case.model_type, "dtype": case.dtype, "seed": seed, "facts": facts}


def versions() -> dict[str, str]:
    """What computed the reference."""
    modules = {"torch": torch, "transformers": transformers, "safetensors": safetensors, "numpy": np}
    return {"python": platform.python_version(), **{name: module.__version__ for name, module in modules.items()}}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="make the golden models and their references")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent.parent / "tests" / "golden")
    parser.add_argument("--only", nargs="+", default=[], choices=[case.name for case in CASES], metavar="NAME")
    options = parser.parse_args(arguments)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # one order of summation, so the same bytes each time
    index_file = options.folder / "index.json"
    rows = {row["name"]: row for row in json.loads(index_file.read_text())["cases"]} if index_file.exists() else {}
    options.folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if options.only and case.name not in options.only:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            rows[case.name] = make_case(case, Path(scratch) / case.name) | {"versions": versions()}
            shutil.rmtree(options.folder / case.name, ignore_errors=True)
            shutil.copytree(Path(scratch) / case.name, options.folder / case.name)
    kept = [rows[case.name] for case in CASES if case.name in rows]
    write_json(index_file, {"command": "python tools/make_golden.py", "cases": kept})
    return 0


if __name__ == "__main__":
    sys.exit(main())

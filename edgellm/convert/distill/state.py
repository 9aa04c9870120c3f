"""What an interrupted training goes on from: one safetensors file, replaced whole each time it is saved."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.convert.distill.optimizer import AdamW
from edgellm.convert.distill.parameters import Parameters
from edgellm.errors import ModelError
from edgellm.formats import open_checkpoint, write_file
from edgellm.jsonfile import parse_json

KEY = "edgellm.distill"
VERSION = 1
_KINDS = ("weight", "mean", "square")


@dataclass(frozen=True)
class Saved:
    """What stands in a state beside the arrays: steps done, and what the run has found so far, for the report."""

    step: int
    found: dict[str, Any]


def state_path(out: str | os.PathLike[str]) -> Path:
    """Where the state of a run that will write `out` lies: beside it."""
    out = Path(os.path.abspath(out))
    return out.with_name(out.name + ".distill-state.safetensors")


def save_state(path: Path, identity: str, parameters: Parameters, optimizer: AdamW, saved: Saved) -> None:
    """Write weights and moments. Raises `OutputError`; what was there stays whole."""
    tensors = {
        f"{kind}/{name}": array
        for kind, table in zip(_KINDS, (parameters.arrays, optimizer.mean, optimizer.square), strict=True)
        for name, array in table.items()
    }
    facts = {"version": VERSION, "identity": identity, "step": saved.step, "found": saved.found}
    write_file(path, tensors, {KEY: json.dumps(facts, allow_nan=False)})


def load_state(path: Path, identity: str, parameters: Parameters, optimizer: AdamW) -> Saved:
    """Read a state into the arrays at hand.

    Raises:
        InputError: there is none.
        ModelError: damaged, or of a run with other models, text or settings.
    """
    with open_checkpoint(path) as file:
        if KEY not in file.metadata:
            raise ModelError("not the state of a distillation", file=path, key="__metadata__", allowed=KEY)
        facts = parse_json(file.metadata[KEY].encode("utf-8", "replace"), path)
        if facts.get("version") != VERSION or facts.get("identity") != identity:
            hint = "Give the same arguments as then, or start anew without --resume."
            raise ModelError("the state is of another run: models, text or settings differ", file=path, hint=hint)
        step, found = facts.get("step"), facts.get("found")
        if type(step) is not int or step < 0 or not isinstance(found, dict):
            raise ModelError("damaged", file=path, key=KEY, found=step)
        for kind, table in zip(_KINDS, (parameters.arrays, optimizer.mean, optimizer.square), strict=True):
            for name, array in table.items():
                stored = file.read_float32(f"{kind}/{name}")
                if stored.shape != array.shape or not np.isfinite(stored).all():
                    raise ModelError("damaged", file=path, key=f"{kind}/{name}", found=list(stored.shape))
                array[...] = stored
    optimizer.count = step
    return Saved(step, found)

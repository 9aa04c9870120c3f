"""One engine's turn: a worker process from its start to its end, timed while the machine is watched."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.peers import quiet
from tools.peers.places import REPOSITORY

_TIMEOUT_S = 1200
_READ_BYTES = 16 << 20


class WorkerFailed(Exception):
    """A worker ended without its last word; the text says why."""


@dataclass
class Turn:
    """What a worker said.

    Attributes:
        loaded: facts and the seconds that loading took.
        first_token_s: from the start of the process to the first token of a short prompt.
        steps: each step's prompt, generate, prefill_s, decode_s, in order.
        peak_bytes: the most memory the process held.
        limits: of the machine, where the worker measured those.
        others: share of the machine that went to others meanwhile.
    """

    loaded: dict[str, Any] = field(default_factory=dict)
    first_token_s: float | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    peak_bytes: int | None = None
    limits: dict[str, float] | None = None
    others: float = 0.0


@dataclass
class Patience:
    """When a turn counts.

    Attributes:
        limit: the share of the machine that others may take.
        retries: turns thrown away before the least disturbed one is kept.
        wait_s: seconds that a turn waits for a quiet machine.
        thrown_away: turns so far.
    """

    limit: float = quiet.LIMIT
    retries: int = 3
    wait_s: float = 30.0
    thrown_away: int = 0


def take(python: Path, worker: str, job: dict[str, Any], patience: Patience) -> Turn:
    """A turn that others did not disturb, or the least disturbed of a few.

    Raises:
        WorkerFailed: the worker did.
    """
    turns: list[Turn] = []
    for _ in range(patience.retries + 1):
        quiet.wait(patience.limit, patience.wait_s)
        turns.append(_take_once(python, worker, job))
        if turns[-1].others <= patience.limit:
            break
        patience.thrown_away += len(turns) <= patience.retries
    return min(turns, key=lambda turn: turn.others)


def _take_once(python: Path, worker: str, job: dict[str, Any]) -> Turn:
    _read_files(Path(job["model"]))
    command = [str(python), "-m", f"tools.peers.workers.{worker}", json.dumps(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode, as those of the peers
    before, start = quiet.now(), time.monotonic()
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            cwd=REPOSITORY,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise WorkerFailed(f"no end after {_TIMEOUT_S} s") from None
    turn = _heard(done.stdout, start)
    if turn is None or done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise WorkerFailed(said[-1].strip())
    turn.others = quiet.others(before, quiet.now())
    return turn


def _heard(output: str, start: float) -> Turn | None:
    """What the worker said; None where it did not come to its end."""
    turn, ended = Turn(), False
    for line in output.splitlines():
        if not line.startswith('{"event": '):
            continue  # a library talks
        said = json.loads(line)
        event = said.pop("event")
        if event == "loaded":
            turn.loaded = said
        elif event == "first":
            turn.first_token_s = said["at"] - start
        elif event == "step":
            turn.steps.append(said)
        elif event == "memory":
            turn.peak_bytes = said["bytes"]
        elif event == "limits":
            turn.limits = said
        elif event == "done":
            ended = True
    return turn if ended else None


def _read_files(model: Path) -> None:
    """Go through a model's files, so that a start finds them in the system's cache."""
    for path in sorted(model.rglob("*")) if model.is_dir() else [model]:
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(_READ_BYTES):
                    pass

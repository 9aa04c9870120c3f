"""`models`: the same shape written for every engine, with random weights.

What an engine's own tools need more memory or time for than a developer's machine has is left out, and the reason is
kept beside where the model would be, so that the table can say it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.make_synthetic import Storage, make_synthetic, model_config
from tools.peers.engines import Engine
from tools.peers.places import REPOSITORY, Work, facts_path
from tools.peers.tensor_types import gguf_tensors

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Allowance:
    """What building a model may take: bytes of memory, seconds."""

    nbytes: int = 20 << 30
    seconds: float = 900


class BuildFailed(Exception):
    """A model was not built; the text says why."""


def make_models(
    shape: str, engines: Sequence[Engine], work: Work, allowed: Allowance, say: Callable[[str], None]
) -> None:
    """Write what the engines lack of a shape. A model that cannot be had leaves its reason."""
    folder = work.shape(shape)
    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(shape)
    own = folder / "edgellm"
    if not own.exists():
        say(f"{shape}: edgellm (GPTQ, group 128)")
        make_synthetic(config, own, Storage(), name=shape)
    dense = folder / "float16"
    for model, environment in dict.fromkeys((engine.model, engine.environment) for engine in engines if engine.is_peer):
        path = folder / model
        if path.exists() and "weight_bytes" in work.facts(path):  # written last
            continue
        say(f"{shape}: {model}")
        start = time.monotonic()
        try:
            if environment == "llama.cpp":
                command = _gguf_command(work, own, path)
            else:
                _require(work, "make")
                _check_size(config, allowed)
                if not dense.exists():
                    make_synthetic(config, dense, Storage("float16"), name=shape)
                module = ["-m", f"tools.peers.{environment}_model"]
                command = [str(work.python("make")), *module, str(dense), str(path)]
            peak = _build(command, folder / f"{path.stem}.log", allowed)
        except BuildFailed as failure:
            _remove(path)
            facts_path(path).write_text(json.dumps({"missing": str(failure)}), encoding="utf-8")
            say(f"{shape}: {model}: {failure}")
        else:
            say(f"{shape}: {model}: {time.monotonic() - start:.0f} s, {peak / 1e9:.1f} GB of memory")
    if dense.exists():
        shutil.rmtree(dense)


def _gguf_command(work: Work, own: Path, path: Path) -> list[str]:
    _require(work, "llama.cpp")
    module = ["-m", "tools.peers.gguf_model"]
    return [str(work.python("llama.cpp")), *module, str(own), str(path), "--mix", path.stem]


def _check_size(config: dict[str, Any], allowed: Allowance) -> None:
    """Refuse a float16 checkpoint, before it is written, whose readers need more than allowed: they hold it twice."""
    size = 2 * sum(math.prod(tensor.shape) for tensor in gguf_tensors(config, "q4_0"))
    if 2 * size > allowed.nbytes:
        gib = allowed.nbytes / 2**30
        raise BuildFailed(f"not built: the {size / 1e9:.1f} GB checkpoint twice is more than {gib:.1f} GiB")


def _require(work: Work, environment: str) -> None:
    if not work.python(environment).exists():
        raise BuildFailed(f"not built: no environment: bench_peers.py setup {environment}")


def _build(command: list[str], log: Path, allowed: Allowance) -> int:
    """The most memory the command held, bytes. Raises `BuildFailed`."""
    peak, start = 0, time.monotonic()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=REPOSITORY, env=environment)
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            peak = max(peak, _resident(process.pid))
            too_long = time.monotonic() - start > allowed.seconds
            if too_long or peak > allowed.nbytes:
                process.kill()
                process.wait()
                gib = allowed.nbytes / 2**30
                limit = f"{allowed.seconds / 60:.0f} minutes" if too_long else f"{gib:.0f} GiB of memory"
                raise BuildFailed(f"not built: building takes more than {limit}")
    if process.returncode:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise BuildFailed(f"not built: {(lines or ['no word'])[-1].strip()[:200]}")
    return peak


def _resident(process: int) -> int:
    """Bytes that a process holds, 0 once it has ended."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""The engines: what runs where, on which file, and which settings `tune` may choose from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgellm.errors import UsageError
from tools.peers.places import Work, read_json

SHAPES = ("qwen2.5-0.5b", "llama-3.2-1b", "qwen2.5-1.5b", "llama-2-7b")


@dataclass(frozen=True)
class Engine:
    """A row of the table.

    Attributes:
        name: as the table and `--engines` have it.
        environment, worker: interpreter and module that run it.
        model: its file or folder below the shape's.
        options: always given to the worker.
        choices: settings that `tune` tries; the first is taken where nothing was tuned.
        refinements: settings that it then tries on top of the best, for prompts alone.
    """

    name: str
    environment: str
    worker: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    choices: tuple[dict[str, Any], ...] = ({},)
    refinements: tuple[dict[str, Any], ...] = ()

    @property
    def is_peer(self) -> bool:
        return self.environment != "edgellm"


def _llama_cpp(mix: str, repack: bool) -> Engine:
    choices = ({"flash_attn": True}, {"flash_attn": False})
    name = f"llama.cpp-{mix}" + ("" if repack else "-norepack")
    return Engine(name, "llama.cpp", "llama_cpp", f"{mix}.gguf", {"repack": repack}, choices, ({"n_ubatch": 128},))


ENGINES = (
    Engine("edgellm", "edgellm", "edgellm", "edgellm"),
    Engine("edgellm-head4", "edgellm", "edgellm", "edgellm", {"lm_head": "int4"}),
    *(_llama_cpp(mix, repack) for mix in ("q4_0", "q4_0-head4", "q4_k_m") for repack in (True, False)),
    Engine("openvino", "openvino", "openvino", "openvino", {}, tuple({"attention_backend": b} for b in ("PA", "SDPA"))),
    Engine("ctranslate2", "ctranslate2", "ctranslate2", "ctranslate2"),
)


def chosen(names: Sequence[str]) -> list[Engine]:
    """Engines by name; a name that is the beginning of several means all of them, none at all means every engine.

    Raises:
        UsageError: no engine is called so.
    """
    found: list[Engine] = []
    for name in names or [""]:
        exact = [engine for engine in ENGINES if engine.name == name]
        matching = exact or [engine for engine in ENGINES if engine.name.startswith(name)]
        if not matching:
            allowed = ", ".join(engine.name for engine in ENGINES)
            raise UsageError("no such engine", key="--engines", found=name, allowed=allowed)
        found += [engine for engine in matching if engine not in found]
    return found


def missing(engine: Engine, shape: str, work: Work) -> str | None:
    """Why an engine cannot run here, None where it can."""
    if not work.python(engine.environment).exists():
        return f"no environment: bench_peers.py setup {engine.environment}"
    model = work.shape(shape) / engine.model
    if not model.exists():
        return work.facts(model).get("missing", "no model: bench_peers.py models")
    return None


def settings(engine: Engine, shape: str, work: Work) -> dict[str, Any]:
    """The engine's options, with what `tune` chose."""
    tuned = read_json(work.tuned(shape)).get("choice", {}).get(engine.name, engine.choices[0])
    options = {**engine.options, **tuned}
    if engine.name == "openvino":
        # blobs of the compiled model: a start after the first reads these
        options["cache_dir"] = str(work.shape(shape) / f"openvino-cache-{_key(tuned)}")
    if engine.environment == "llama.cpp":
        # keys and values depend on how attention reads them, not on how weights are stored
        attention = {"flash_attn": options["flash_attn"]}
        options["state"] = str(work.shape(shape) / f"llama.cpp-state-{_key(attention)}")
    return options


def _key(values: dict[str, Any]) -> str:
    return "-".join(f"{key}-{json.dumps(value)}".replace('"', "") for key, value in sorted(values.items())) or "default"

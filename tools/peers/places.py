"""Where things lie: environments and model files below one work folder, beside none of the checkout."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def default_work() -> Path:
    """A folder of the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "edgellm-bench-peers"


@dataclass(frozen=True)
class Work:
    """The work folder."""

    root: Path

    def environment(self, name: str) -> Path:
        """The virtual environment of a peer."""
        return self.root / name / "venv"

    def python(self, name: str) -> Path:
        """The interpreter of a peer; edgellm runs in the one that runs this."""
        return Path(sys.executable) if name == "edgellm" else self.environment(name) / "bin" / "python"

    def shape(self, shape: str) -> Path:
        """The folder of a shape's models."""
        return self.root / "models" / shape

    def facts(self, model: Path) -> dict[str, Any]:
        """What was noted beside a model when it was written; {} where nothing was."""
        return read_json(facts_path(model))

    def tuned(self, shape: str) -> Path:
        """The file of what `tune` found."""
        return self.shape(shape) / "tuned.json"


def facts_path(model: Path) -> Path:
    """The file of facts beside a model, which is a file or a folder."""
    return model.with_suffix(".json") if model.suffix == ".gguf" else model.with_name(model.name + ".json")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

"""What a distillation is asked to do."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from edgellm.errors import UsageError

HEAL = ("none", "lstsq", "scales", "weights")
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
#: What may change between an interruption and its resume, since no row or array depends on it.
_FREE = ("learning_rate", "alpha", "temperature", "weight_decay", "clip", "eval_every", "save_seconds")


@dataclass(frozen=True)
class Settings:
    """Numbers of a distillation; what is out of range ends in `UsageError`.

    Attributes:
        length: tokens of a row, T.
        held_out: share of the text that is never trained on, at most `most_held_out` tokens of it.
        heal: what the block-by-block repair moves: "none", "lstsq" (output projections by least squares), "scales"
            (then norms and a factor an output of each linear by gradient steps) or "weights" (then all weights).
        heal_rows: rows of the text it sees. heal_steps: gradient steps a block. heal_learning_rate: their highest rate.
        steps: of logit distillation, `batch_size` rows each, `micro_batch` of them at a time (None: some 1,024 tokens).
        temperature, alpha: see `loss`.
        learning_rate, warmup, weight_decay, clip: of AdamW; warmup is a share of the steps.
        seed: of the order of rows.
        eval_every: steps between measurements on the held-out text. save_seconds: between savings of the state.
    """

    length: int = 256
    held_out: float = 0.05
    most_held_out: int = 8192
    heal: str = "scales"
    heal_rows: int = 64
    heal_steps: int = 40
    heal_learning_rate: float = 2e-3
    steps: int = 200
    batch_size: int = 8
    micro_batch: int | None = None
    temperature: float = 1.0
    alpha: float = 0.7
    learning_rate: float = 3e-4
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    eval_every: int = 50
    save_seconds: float = 60.0

    def __post_init__(self) -> None:
        whole = {"length": 2, "most_held_out": 1, "heal_rows": 1, "heal_steps": 0, "steps": 0, "batch_size": 1}
        for key, least in {**whole, "eval_every": 1, "seed": 0}.items():
            self._require(key, least, math.inf)
        for key, low, high in (
            ("held_out", 1e-6, 0.9),
            ("heal_learning_rate", 1e-12, 10.0),
            ("temperature", 0.05, 100.0),
            ("alpha", 0.0, 1.0),
            ("learning_rate", 1e-12, 10.0),
            ("warmup", 0.0, 1.0),
            ("weight_decay", 0.0, 1.0),
            ("clip", 1e-6, 1e6),
            ("save_seconds", 0.0, 1e9),
        ):
            self._require(key, low, high)
        if self.micro_batch is not None:
            self._require("micro_batch", 1, self.batch_size)
        if self.heal not in HEAL:
            raise UsageError("no such repair", key="--heal", found=self.heal, allowed=", ".join(HEAL))

    def _require(self, key: str, low: float, high: float) -> None:
        value = getattr(self, key)
        if not low <= value <= high:
            allowed = f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"
            raise UsageError("out of range", key="--" + key.replace("_", "-"), found=value, allowed=allowed)

    @property
    def rows_at_once(self) -> int:
        """Rows of a micro-batch."""
        return self.micro_batch or max(min(self.batch_size, 1024 // self.length), 1)

    def identity(self) -> dict[str, Any]:
        """What must be the same to go on where an interrupted run stopped."""
        return {key: value for key, value in asdict(self).items() if key not in _FREE}

"""What the suite runs with: shapes, lengths, where files go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: What a part of the suite prints as it goes.
Say = Callable[[str], None]
#: What it found, JSON-able; `ok` False where a bound was not met.
Facts = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """See the module.

    Attributes:
        folder: for synthetic models and what was found.
        device: "cuda:0" ...
        large, small: models that speed is measured with, names of `tools.make_synthetic.MODELS` or config.json files.
        decode_tokens: steps that decode is timed over, and the depth that they begin at.
        prompt_tokens: of the timed prefill.
        shape_tokens: lengths of the prompts whose numerics are compared at the shapes of `large` and `small`.
        golden: golden models whose greedy ids are compared, by a part of their names; all of them for ().
        golden_tokens: greedy ids each.
        copy_bytes: of the bandwidth's yardstick.
        matmul: side of the square float16 product that prefill is compared with, 0 without torch.
    """

    folder: Path
    device: str = "cuda:0"
    large: str = "llama-2-7b"
    small: str = "llama-3.2-1b"
    decode_tokens: int = 64
    prompt_tokens: int = 2048
    shape_tokens: tuple[int, ...] = (1, 7, 100, 512)
    golden: tuple[str, ...] = field(default=())
    golden_tokens: int = 48
    copy_bytes: int = 1 << 30
    matmul: int = 8192

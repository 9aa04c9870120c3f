"""How a conversion keeps to a limit of memory: what must be held, and what is left for activations."""

from __future__ import annotations

from dataclasses import dataclass

_PLENTY = 1 << 60


@dataclass(frozen=True)
class Budget:
    """Attributes:
    activation_bytes: activations above this go to a file.
    step_tokens: rows of a forward step.
    peak_bytes: what the process will hold at its peak, as planned.
    """

    activation_bytes: int = _PLENTY
    step_tokens: int = 2048
    peak_bytes: int = 0

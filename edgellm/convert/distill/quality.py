"""How a student does on held-out rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.convert.distill.loss import Sums, loss_and_gradient
from edgellm.convert.distill.network import Network, sequences


@dataclass(frozen=True)
class Quality:
    """Means over `tokens` held-out tokens.

    Attributes:
        nll: nats a token. kl: KL(teacher || student) in nats. agreement: share of equal likeliest tokens.
    """

    tokens: int
    nll: float
    kl: float
    agreement: float

    @property
    def perplexity(self) -> float:
        """exp(nll)."""
        return math.exp(self.nll) if self.nll < 700 else math.inf

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not finite is None."""
        facts = {"perplexity": self.perplexity, "nll": self.nll, "kl": self.kl}
        shown = {key: value if math.isfinite(value) else None for key, value in facts.items()}
        return {"tokens": self.tokens, **shown, "agreement": self.agreement}


def measure(student: Network, teacher: Network, rows: np.ndarray, at_once: int) -> Quality:
    """Run both on `rows` int32 [N, T + 1], `at_once` of them at a time."""
    total = Sums()
    for first in range(0, len(rows), at_once):
        part = rows[first : first + at_once]
        ids = sequences(part[:, :-1])
        hidden = [net.forward(net.body, {"token_ids": ids})["h"] for net in (student, teacher)]
        found, _ = loss_and_gradient(
            student, hidden[0], teacher, hidden[1], sequences(part[:, 1:]), 1.0, 0.0, 1.0, None
        )
        total.add(found)
    count = total.tokens
    return Quality(count, total.nll / count, total.kl / count, total.agreed / count)

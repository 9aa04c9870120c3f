"""What the student is trained on: the teacher's distribution and the text itself.

loss = alpha * T^2 * KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) * CE(s, next token), the mean over the tokens
(Hinton et al., arXiv:1503.02531). T^2 keeps the gradient of the first part as large as that of the second at any T.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgellm.convert.distill.network import Arrays, Network

#: Logits held at a time, numbers; a chunk of rows of both models' logits and their gradient.
CHUNK_NUMBERS = 1 << 20


@dataclass
class Sums:
    """Sums over tokens, in nats. Attributes: tokens, kl (at the temperature, without T^2), nll, agreed (top-1)."""

    tokens: int = 0
    kl: float = 0.0
    nll: float = 0.0
    agreed: int = 0

    def add(self, other: Sums) -> None:
        """Count what `other` counted."""
        self.tokens += other.tokens
        self.kl += other.kl
        self.nll += other.nll
        self.agreed += other.agreed

    def loss(self, temperature: float, alpha: float) -> float:
        """The mean loss of a token."""
        return (alpha * temperature**2 * self.kl + (1 - alpha) * self.nll) / max(self.tokens, 1)


def chunk_rows(vocab_size: int) -> int:
    """Rows of logits that are computed at a time."""
    return max(CHUNK_NUMBERS // vocab_size, 16)


def log_softmax(x: np.ndarray) -> np.ndarray:
    """In place, over the last axis."""
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def loss_of_logits(
    student: np.ndarray, teacher: np.ndarray, targets: np.ndarray, temperature: float, alpha: float
) -> tuple[Sums, np.ndarray]:
    """The sums over rows and the gradient of their summed loss by the student's logits.

    Args:
        student, teacher: logits [R, V]; the teacher's are used up.
        targets: next token ids [R].
    """
    rows = np.arange(len(targets))
    found = Sums(tokens=len(targets), agreed=int((student.argmax(-1) == teacher.argmax(-1)).sum()))
    teacher /= temperature
    log_p = log_softmax(teacher)
    log_q = log_softmax(student / temperature)
    p = np.exp(log_p)
    log_p -= log_q
    found.kl = float(np.einsum("rv,rv->", p, log_p, dtype=np.float64))
    q = np.exp(log_q, out=log_q)
    p *= -1
    p += q
    p *= alpha * temperature  # of T^2 * KL: T * (q - p)
    if temperature != 1.0:
        q = np.exp(log_softmax(student.copy()))
    chosen = q[rows, targets]
    with np.errstate(divide="ignore"):
        found.nll = float(-np.log(chosen.astype(np.float64)).sum())
    if alpha < 1.0:
        q[rows, targets] -= 1
        q *= 1 - alpha
        p += q
    return found, p


def loss_and_gradient(
    student: Network,
    h: np.ndarray,
    teacher: Network,
    teacher_h: np.ndarray,
    targets: np.ndarray,
    temperature: float,
    alpha: float,
    scale: float,
    into: Arrays | None,
) -> tuple[Sums, np.ndarray]:
    """As `loss_of_logits` from what goes into both lm_heads, a chunk of rows at a time.

    Args:
        h, teacher_h: [R, hidden_size] of each.
        scale: the gradient's factor, 1 / tokens of the step.
        into: gets the gradient of the student's lm_head; None computes no gradient.

    Returns:
        The sums, and the gradient of h (empty without `into`).
    """
    rows = chunk_rows(student.config.vocab_size)
    total, grads = Sums(), []
    for first in range(0, len(h), rows):
        part = slice(first, first + rows)
        logits = student.logits(h[part])
        found, g = loss_of_logits(logits, teacher.logits(teacher_h[part]), targets[part], temperature, alpha)
        total.add(found)
        if into is not None:
            g *= scale
            grads.append(student.logits_back(g, h[part], logits, into))
    return total, np.concatenate(grads) if grads else np.empty((0, h.shape[1]), h.dtype)

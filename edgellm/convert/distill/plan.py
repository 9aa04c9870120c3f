"""How much memory a distillation holds, and what its training computes; known before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.convert.distill.loss import CHUNK_NUMBERS, chunk_rows
from edgellm.convert.distill.ops.attention import saved_numbers
from edgellm.convert.distill.settings import Settings
from edgellm.errors import OutOfMemoryError
from edgellm.model.program import Program

_FLOAT = 4
#: Arrays of a chunk of logits that are held at a time: both models', their softmaxes, the gradient.
_LOGIT_ARRAYS = 6


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose; the sum is the peak above the bare process.

    Attributes:
        teacher: its weights. student: weights, gradients and two moments.
        activations: of a micro-batch, kept for the backward. logits: of a chunk of rows.
        rows: token ids. healing: hidden states of the rows that blocks are repaired on.
    """

    teacher: int
    student: int
    activations: int
    logits: int
    rows: int
    healing: int

    @property
    def peak(self) -> int:
        """Training and healing do not run at the same time; healing holds gradients and moments of one block."""
        training = self.student + self.activations + self.logits
        healing = self.student // 2 + self.healing + self.activations
        return self.teacher + self.rows + max(training, healing)

    def as_dict(self) -> dict[str, int]:
        """For JSON."""
        return {**{f"{key}_bytes": value for key, value in vars(self).items()}, "peak_bytes": self.peak}

    def require(self, available: int | None) -> None:
        """Raises `OutOfMemoryError` where more is needed than `available`, None being unknown."""
        if available is not None and self.peak > available:
            raise OutOfMemoryError(
                "the distillation does not fit this machine's memory",
                found=f"{self.peak:,} bytes needed",
                allowed=f"{available:,} bytes available",
                hint="Lower --micro-batch, --length or --heal-rows, or take a smaller student.",
            )


def plan_memory(student: Program, teacher: Program, settings: Settings, tokens: int) -> MemoryPlan:
    """The plan for training `student` against `teacher` on `tokens` ids of text."""
    at_once = settings.rows_at_once * settings.length
    vocab = student.config.vocab_size
    largest = max(spec.shape[0] * (spec.shape[1] if len(spec.shape) > 1 else 1) for spec in student.weights.values())
    activations = _kept(student, settings) * settings.rows_at_once + 8 * max(student.buffers.values()) * at_once
    hidden = settings.heal_rows * settings.length * (2 * teacher.config.hidden_size + 4 * student.config.hidden_size)
    return MemoryPlan(
        teacher=_FLOAT * teacher.parameters,
        student=_FLOAT * (4 * student.parameters + 2 * largest),
        activations=_FLOAT * activations,
        logits=_FLOAT * _LOGIT_ARRAYS * min(chunk_rows(vocab) * vocab, max(at_once * vocab, CHUNK_NUMBERS // 64)),
        rows=2 * 4 * tokens,
        healing=_FLOAT * hidden if settings.heal != "none" else 0,
    )


def _kept(program: Program, settings: Settings) -> int:
    """Numbers that the forward of one row keeps for its backward."""
    config, total = program.config, 0
    for op in program.ops:
        if op.kind == "logits":
            continue
        widths = sum(program.buffers.get(name, 0) for name in op.outputs)
        total += widths * settings.length * (2 if op.kind == "rms_norm" else 1)
        if op.kind == "attention":
            window, capped = op.attributes["window"], op.attributes["softcap"] is not None
            total += saved_numbers(settings.length, config.num_attention_heads, window, capped)
            total += 2 * program.buffers["k"] * settings.length
    return total

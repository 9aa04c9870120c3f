"""The student before anything is done to it, and the teacher, opened and compared."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

from edgellm.convert.distill.parameters import read_parameters
from edgellm.convert.distill.reduce import Model
from edgellm.errors import ModelError, UsageError
from edgellm.model import OpenedModel, open_model
from edgellm.sidefiles import read_side_json
from edgellm.text import load_tokenizer


@dataclass
class Sources:
    """Two opened models, maybe one and the same. A context manager that closes them."""

    student: OpenedModel
    teacher: OpenedModel
    _stack: ExitStack

    @property
    def same(self) -> bool:
        """Whether the student is made from the teacher."""
        return self.student is self.teacher

    def __enter__(self) -> Sources:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self) -> tuple[Model, Model]:
        """Student and teacher in memory, the same object where they are one. Raises `ModelError`."""
        teacher = read_model(self.teacher)
        return (teacher if self.same else read_model(self.student)), teacher


def open_sources(student: str | os.PathLike[str], teacher: str | os.PathLike[str] | None) -> Sources:
    """Open both; `teacher` None means that the student is made from itself.

    Raises:
        InputError, ModelError: see `open_model`; or the vocabularies differ.
        UsageError: the student is quantized.
    """
    with ExitStack() as stack:
        mine = stack.enter_context(open_model(student))
        same = teacher is None or os.path.realpath(teacher) == os.path.realpath(student)
        theirs = mine if same else stack.enter_context(open_model(teacher))
        if mine.quantization is not None and not same:
            hint = "Distill the unquantized student, then convert it."
            raise UsageError("the student is quantized; its codes cannot be trained", key=str(student), hint=hint)
        if not same:
            _check_vocabularies(mine, theirs)
        return Sources(mine, theirs, stack.pop_all())


def read_model(opened: OpenedModel) -> Model:
    """The weights of an opened model, float32. Raises `ModelError`."""
    values = read_side_json(opened.side_files, "config.json") or {}
    values = {**values, "vocab_size": opened.config.vocab_size}  # of the rows there are, where they are padded
    return Model(values, opened.weights.program, read_parameters(opened))


def _check_vocabularies(student: OpenedModel, teacher: OpenedModel) -> None:
    """Every id must mean the same to both."""
    mine, theirs = student.config.vocab_size, teacher.config.vocab_size
    hint = "Logits can only be compared id by id."
    if mine != theirs:
        raise ModelError(
            "teacher and student have other vocabularies",
            file=teacher.path,
            key="vocab_size",
            found=theirs,
            allowed=str(mine),
            hint=hint,
        )
    ours, others = (load_tokenizer(model.side_files, vocab_size=mine) for model in (student, teacher))
    for number in range(min(ours.vocab_size, others.vocab_size)):
        if ours.piece_bytes(number) != others.piece_bytes(number):
            found, allowed = repr(others.piece_bytes(number)), repr(ours.piece_bytes(number))
            raise ModelError(
                "teacher and student have other tokenizers",
                file=others.file,
                key=f"id {number}",
                found=found,
                allowed=allowed,
                hint=hint,
            )

"""What can go wrong, said once: every error names what, where (file, key) and what to do.

    EdgeLLMError                     exit code 1
    |- UsageError                    2    an argument that no model could satisfy
    |- ModelError                    65   a file of the model is damaged, hostile or not supported
    |  |- TokenizerError             65
    |  `- TemplateError              65
    |- InputError                    66   a file that was asked for is not there
    |- ContextLengthError            65   the prompt does not fit the context
    |- EngineBusy                    69   every slot is taken
    |- EngineClosed                  70   used after close()
    |- BackendUnavailable            69   the asked-for backend or device cannot run here
    |- NumericalError                70   NaN or infinity in the logits
    |- OutOfMemoryError              75   the plan does not fit, nothing was allocated
    `- OutputError                   73   a file cannot be written

`str(error)` is one line, printable on any terminal: names that come from files are escaped.
"""

from __future__ import annotations

import os
from typing import Any

_LONGEST_FOUND = 120


def printable(text: object, limit: int = _LONGEST_FOUND) -> str:
    """`text` on one line without control, bidirectional or surrogate characters, cut to `limit` characters."""
    shown = str(text)
    cut = shown[: limit + 1]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in cut)
    return escaped[:limit] + "..." if len(shown) > limit else escaped


class EdgeLLMError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        what: one sentence without a full stop at its end.
        file: the file at fault.
        key: the tensor, config key or argument at fault, a dotted path where it is nested.
        found: what stands there.
        allowed: what may stand there.
        hint: what the person can do, a sentence.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        file: str | os.PathLike[str] | None = None,
        key: str | None = None,
        found: Any = None,
        allowed: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.file = os.fspath(file) if file is not None else None
        self.key = key
        self.found = found
        self.allowed = allowed
        self.hint = hint
        super().__init__(what)

    def __str__(self) -> str:
        where = [printable(part, 300) for part in (self.file, self.key) if part is not None]
        line = ": ".join([*where, printable(self.what, 600)])
        if self.found is not None:
            line += f"; found {printable(self.found)}"
        if self.allowed is not None:
            line += f", allowed: {printable(self.allowed, 300)}"
        if self.hint is not None:
            line += f". {printable(self.hint, 400)}"
        return line


class UsageError(EdgeLLMError):
    """An argument is outside its range."""

    exit_code = 2


class ModelError(EdgeLLMError):
    """A file of the model is damaged, hostile, inconsistent or of a kind that is not supported."""

    exit_code = 65


class TokenizerError(ModelError):
    """The tokenizer files cannot be used."""


class TemplateError(ModelError):
    """The chat template fails, or does more than its budget allows."""


class InputError(EdgeLLMError):
    """A file that was asked for is not there or cannot be read."""

    exit_code = 66


class ContextLengthError(EdgeLLMError):
    """The prompt does not fit the context; nothing was truncated."""

    exit_code = 65


class EngineBusy(EdgeLLMError):
    """Every slot is taken by another sequence."""

    exit_code = 69


class EngineClosed(EdgeLLMError):
    """The engine was used after `close()`."""

    exit_code = 70


class BackendUnavailable(EdgeLLMError):
    """The backend or device that was asked for cannot run here."""

    exit_code = 69


class NumericalError(EdgeLLMError):
    """A forward pass produced NaN or infinity; only the sequence at hand ends."""

    exit_code = 70


class OutOfMemoryError(EdgeLLMError):
    """The memory plan does not fit this machine; nothing was allocated."""

    exit_code = 75


class OutputError(EdgeLLMError):
    """A file cannot be written; what was there before is untouched."""

    exit_code = 73

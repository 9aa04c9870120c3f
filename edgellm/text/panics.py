"""The text that a Rust panic leaves on stderr, beside the error that we make of it, is taken away.

`tokenizers` panics where a regular expression of the model backtracks too often, and Rust writes that to file
descriptor 2 itself, where no Python code stands between. While such an expression runs, descriptor 2 leads into a
temporary file; afterwards what others wrote there meanwhile goes on to where it was meant for. Expressions that cannot
backtrack much, which is all that are published, run without any of this.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

#: What the default panic hook of Rust prints, up to its last line about backtraces.
_PANIC = re.compile(rb"\n?thread '[^'\n]*'(?: \(\d+\))? panicked at .*?\nnote: [^\n]*RUST_BACKTRACE[^\n]*\n", re.DOTALL)
_ESCAPE_OR_CLASS = re.compile(r"\\[pPx]\{[^}]*\}|\\.|\[(?:\\.|\[[^\]]*\]|[^\]\\])*\]", re.DOTALL)
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{\d*,\d*\})")
_REPETITION = re.compile(r"[*+]|\{\d*,\}")
_TAME_REPETITIONS = 2
_STDERR = 2

_window = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child must not begin with its stderr in our file
    os.register_at_fork(before=_window.acquire, after_in_parent=_window.release, after_in_child=_window.release)


def may_panic(*parts: Any) -> bool:
    """Whether parts of a tokenizer.json hold a regular expression that can backtrack without end."""
    return any(_explosive(pattern) for part in parts for pattern in _patterns(part))


def _patterns(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "Regex" and isinstance(value, str):
                yield value
            else:
                yield from _patterns(value)
    elif isinstance(part, list):
        for value in part:
            yield from _patterns(value)


def _explosive(pattern: str) -> bool:
    """A repeated group, or more than two unbounded repetitions in an alternative; characters stand for classes."""
    plain = _ESCAPE_OR_CLASS.sub("a", pattern)
    if _REPEATED_GROUP.search(plain):
        return True
    return any(len(_REPETITION.findall(branch)) > _TAME_REPETITIONS for branch in plain.split("|"))


@contextlib.contextmanager
def without_panic_text() -> Iterator[None]:
    """Panics within leave no text on stderr. One thread at a time; of a process without stderr nothing is changed."""
    with _window, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            aside = stack.enter_context(tempfile.TemporaryFile())
            real = os.dup(_STDERR)
            stack.callback(_put_back, real, aside)
            os.dup2(aside.fileno(), _STDERR)
        yield


def _put_back(real: int, aside: Any) -> None:
    os.dup2(real, _STDERR)
    aside.seek(0)
    rest = _PANIC.sub(b"", aside.read())
    with contextlib.suppress(OSError):
        while rest:
            rest = rest[os.write(real, rest) :]
    os.close(real)

"""The two streams of a command: answers on stdout, everything else on stderr."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from argparse import Namespace
from typing import IO, Any

from edgellm.cli.text_filter import strip_controls

_STYLES = {"dim": "2", "bold": "1", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_NARROWEST = 20


class Terminal:
    """How a command speaks.

    Args:
        color: "auto", "always" or "never".
        quiet: say only errors on stderr.
        verbose: say details too.
    """

    def __init__(self, color: str = "auto", *, quiet: bool = False, verbose: bool = False) -> None:
        self.color, self.quiet, self.verbose = color, quiet, verbose

    @classmethod
    def of(cls, args: Namespace) -> Terminal:
        """As the global options say."""
        return cls(args.color, quiet=args.quiet, verbose=args.verbose)

    def colored(self, stream: IO[str]) -> bool:
        """Whether `stream` gets colours: never into a file or a dumb terminal unless asked for."""
        if self.color != "auto":
            return self.color == "always"
        return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def style(self, name: str, text: str, stream: IO[str] | None = None) -> str:
        """`text` in one of the styles ("": plain) where the stream (default: stderr) gets colours."""
        return f"\x1b[{_STYLES[name]}m{text}\x1b[0m" if name and self.colored(stream or sys.stderr) else text

    def write(self, text: str) -> None:
        """A piece of an answer, shown at once."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def line(self, text: str = "") -> None:
        """A line of what was asked for."""
        sys.stdout.write(text + "\n")

    def say(self, text: str, style: str = "dim") -> None:
        """A line beside the answer, not under --quiet."""
        if not self.quiet:
            self.warn(text, style)

    def detail(self, text: str) -> None:
        """A line beside the answer under --verbose."""
        if self.verbose:
            self.warn(text, "dim")

    def warn(self, text: str, style: str = "yellow") -> None:
        """A line beside the answer that has to be seen; it may quote files and messages, so it is filtered."""
        sys.stdout.flush()
        sys.stderr.write(self.style(style, _wrapped(strip_controls(text))) + "\n")
        sys.stderr.flush()

    def json(self, value: Any) -> None:
        """One JSON value on one or more lines of stdout, ASCII only, so that every locale can carry it."""
        import json

        self.line(json.dumps(value, indent=2, allow_nan=False, default=str))


def _wrapped(text: str) -> str:
    """`text` broken between words where stderr is a terminal, as it is elsewhere."""
    if not is_terminal(sys.stderr):
        return text
    width = shutil.get_terminal_size().columns
    if len(text) < width or width < _NARROWEST:
        return text
    return textwrap.fill(text, width - 1, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a person is at the other end of `stream`."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False

"""One line on stderr that says what is going on, for as long as it goes on; on a terminal alone."""

from __future__ import annotations

import os
import shutil
import sys

from edgellm.cli.terminal import Terminal, is_terminal


class StatusLine:
    """A line that is written over. A context manager, so that nothing of it is left on the screen.

    Args:
        terminal: under --quiet nothing is shown.

    Attributes:
        live: whether anybody sees it.
    """

    def __init__(self, terminal: Terminal) -> None:
        self.live = is_terminal(sys.stderr) and not terminal.quiet and os.environ.get("TERM") != "dumb"
        self._terminal = terminal
        self._shown = False

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, text: str) -> None:
        """Put `text`, our own and not a file's, in place of what is shown, cut to the width of the terminal."""
        if self.live:
            width = shutil.get_terminal_size().columns
            self._write("\r\x1b[K" + self._terminal.style("dim", text[: max(width - 1, 1)]))
            self._shown = True

    def clear(self) -> None:
        """Show nothing."""
        if self._shown:
            self._write("\r\x1b[K")
            self._shown = False

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

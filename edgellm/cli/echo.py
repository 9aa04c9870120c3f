"""What is typed while an answer is written waits for the next prompt, and is not mixed into the answer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from edgellm.cli.terminal import is_terminal


@contextlib.contextmanager
def hidden_typing() -> Iterator[None]:
    """While this is open the terminal does not show what is typed; Ctrl-C and Ctrl-Z work as ever."""
    try:
        import termios
    except ImportError:  # Windows consoles echo only while somebody reads
        yield
        return
    if not is_terminal(sys.stdin):
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    silent = [*before]
    silent[3] &= ~termios.ECHO  # the local modes
    termios.tcsetattr(descriptor, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)

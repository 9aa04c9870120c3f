"""$VISUAL or $EDITOR on a text, and the system's clipboard."""

from __future__ import annotations

import base64
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile

from edgellm.cli.terminal import is_terminal
from edgellm.errors import BackendUnavailable, UsageError

_CLIPBOARDS = {
    "WAYLAND_DISPLAY": ["wl-copy"],
    "DISPLAY": ["xclip", "-selection", "clipboard"],
}
_MAX_OSC52_BYTES = 74_994  # what xterm takes in one sequence


def edit_text(text: str) -> str:
    """`text` as the person's editor leaves it.

    Raises:
        UsageError: no editor is named, or it failed.
    """
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ("notepad" if sys.platform == "win32" else "vi")
    try:
        words = shlex.split(command, posix=sys.platform != "win32")
    except ValueError:
        words = []
    if not words or shutil.which(words[0]) is None:
        raise UsageError("no such editor", found=command, hint="Set VISUAL or EDITOR.")
    handle, path = tempfile.mkstemp(prefix="edgellm-", suffix=".txt")
    try:
        with open(handle, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
        code = _call([*words, path])
        if code:
            raise UsageError(f"the editor ended with exit code {code}; nothing was changed", found=command)
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().removesuffix("\n")
    finally:
        os.unlink(path)


def _call(command: list[str]) -> int:
    """Run a program that has the terminal, and with it Ctrl-C, for itself."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return subprocess.call(command)
    finally:
        signal.signal(signal.SIGINT, before)


def copy_text(text: str) -> str:
    """Put `text` on the clipboard; how it was done.

    Raises:
        BackendUnavailable: there is neither a clipboard command nor a terminal that could be asked.
    """
    command = _clipboard_command()
    if command is not None:
        done = subprocess.run(command, input=text.encode("utf-8", "replace"), timeout=5, check=False)
        if done.returncode == 0:
            return f"with {command[0]}"
    encoded = base64.b64encode(text.encode("utf-8", "replace"))
    if is_terminal(sys.stdout) and len(encoded) <= _MAX_OSC52_BYTES:
        sys.stdout.write(f"\x1b]52;c;{encoded.decode()}\x07")
        sys.stdout.flush()
        return "through the terminal, if it allows that"
    raise BackendUnavailable("no clipboard", hint="Install wl-copy or xclip, or use /save FILE.")


def _clipboard_command() -> list[str] | None:
    if sys.platform == "darwin":
        return ["pbcopy"]
    if sys.platform == "win32":
        return ["clip"]
    for variable, command in _CLIPBOARDS.items():
        if os.environ.get(variable) and shutil.which(command[0]):
            return command
    return None

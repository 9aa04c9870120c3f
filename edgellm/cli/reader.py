"""What a person types: with editing and history on a terminal, plain lines from anywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgellm import folders
from edgellm.cli import places, stdin
from edgellm.cli.terminal import Terminal, is_terminal

PROMPT, CONTINUED = ">>> ", "... "
_FENCE = '"""'


class Reader(Protocol):
    """Where messages come from."""

    def read(self) -> str | None:
        """The next message, None at the end. Raises `KeyboardInterrupt` for Ctrl-C."""


class PlainReader:
    r"""A message a line; `\"\"\"` opens one of several lines. The prompt, for a person, goes to stderr."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._prompts = is_terminal(sys.stdin)

    def read(self) -> str | None:
        return read_message(self._line)

    def _line(self, prompt: str) -> str | None:
        if self._prompts:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        return stdin.read_line()


class EditingReader:
    """prompt_toolkit: history, pasting of several lines, Ctrl-G for the editor.

    Args:
        history: the history file, None to keep it in memory.
        commands: what Tab completes, with their slashes.
    """

    def __init__(self, terminal: Terminal, history: Path | None, commands: Sequence[str] = ()) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.shortcuts import CompleteStyle

        color = terminal.colored(sys.stdout)
        self._session: Any = PromptSession(
            history=FileHistory(str(history)) if history else InMemoryHistory(),
            key_bindings=_key_bindings(),
            completer=_completer(commands),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            enable_open_in_editor=True,
            tempfile_suffix=".txt",
            enable_suspend=True,
        )
        self._style = "bold ansicyan" if color else ""

    def read(self) -> str | None:
        return read_message(self._line)

    def _line(self, prompt: str) -> str | None:
        try:
            return self._session.prompt([(self._style, prompt)], prompt_continuation=CONTINUED)
        except EOFError:
            return None


def _completer(commands: Sequence[str]) -> Any:
    """Tab completes a command at the start of a line."""
    from prompt_toolkit.completion import Completer, Completion

    class Commands(Completer):
        def get_completions(self, document: Any, event: Any) -> Iterator[Any]:
            typed = document.text_before_cursor
            if typed.startswith("/") and " " not in typed:
                yield from (Completion(name, start_position=-len(typed)) for name in commands if name.startswith(typed))

    return Commands()


def _key_bindings() -> Any:
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("c-g")
    def _(event: Any) -> None:
        event.current_buffer.open_in_editor()

    @bindings.add("c-c")
    def _(event: Any) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return bindings


def read_message(line: Callable[[str], str | None]) -> str | None:
    '''One message: a line, or all up to the closing fence where it begins with """.'''
    first = line(PROMPT)
    if first is None or not first.lstrip().startswith(_FENCE):
        return first
    text = first.lstrip().removeprefix(_FENCE)
    while not text.rstrip().endswith(_FENCE):
        following = line(CONTINUED)
        if following is None:
            return text
        text += "\n" + following
    return text.rstrip().removesuffix(_FENCE).strip("\n")


def open_reader(terminal: Terminal, *, history: bool, commands: Sequence[str] = ()) -> Reader:
    """The reader that fits the streams of this process; history only where it may and can be kept."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)) or os.environ.get("TERM") == "dumb":
        return PlainReader(terminal)
    return EditingReader(terminal, history_file(terminal) if history else None, commands)


def history_file(terminal: Terminal) -> Path | None:
    """The history file, there and readable by its owner only; None where there is no place for it."""
    folder = folders.folder("state")
    if folder is None:
        terminal.detail("no home folder: the history is not kept")
        return None
    path = folder / "chat_history"
    try:
        places.make_private(folder)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        os.chmod(path, 0o600)
    except OSError as error:
        terminal.say(f"note: the history is not kept: {places.short(path)}: {error.strerror}")
        return None
    return path

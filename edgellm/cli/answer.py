"""A model's answer on stdout, piece by piece: filtered, on a terminal broken between words, ended with a newline."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Callable

from edgellm.cli.terminal import Terminal, is_terminal
from edgellm.cli.text_filter import strip_controls

_TAB = 8


class AnswerPrinter:
    """Prints one answer.

    Args:
        terminal: where to.
        raw: pass every character as it is, and wrap nothing.
        wrap: break lines between words where stdout is a terminal.
    """

    def __init__(self, terminal: Terminal, *, raw: bool = False, wrap: bool = True) -> None:
        self._terminal = terminal
        self._raw = raw
        self._wrap = WordWrap(_terminal_width) if wrap and not raw and is_terminal(sys.stdout) else None
        self._ends_line = False

    def write(self, text: str) -> None:
        """Show a piece; with wrapping, the word at its end waits for the next piece."""
        shown = text if self._raw else strip_controls(text)
        self._emit(self._wrap.push(shown) if self._wrap is not None else shown)

    def finish(self) -> None:
        """Show what waited, and end the line."""
        if self._wrap is not None:
            self._emit(self._wrap.finish())
        if not self._ends_line:
            self._terminal.write("\n")

    def _emit(self, text: str) -> None:
        if text:
            self._terminal.write(text)
            self._ends_line = text.endswith("\n")


class WordWrap:
    """Breaks a stream of text between words.

    A word is held back until it is complete, so that it never has to be taken back from the screen; one longer than a
    line is left to the terminal. Wide characters (Chinese, Japanese, Korean, emoji) are words of their own.

    Args:
        width: columns of the terminal, asked for each word, since windows are resized.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._column = 0
        self._space = ""
        self._word = ""
        self._too_long = False

    def push(self, text: str) -> str:
        """What can be shown after `text` has come."""
        return "".join(self._pushed(character) for character in text)

    def _pushed(self, character: str) -> str:
        if character not in " \t\n" and columns(character) < 2:
            self._word += character
            if not self._too_long and columns(self._word) <= self._width():
                return ""
            shown, self._too_long = self._placed(), True
            return shown
        shown, self._too_long = self._placed(), False
        if character == "\n":
            self._column, self._space = 0, ""
            return shown + "\n"
        if columns(character) == 2:
            self._word = character
        else:
            self._space += character
        return shown

    def finish(self) -> str:
        """What was held back; trailing blanks are dropped."""
        return self._placed()

    def _placed(self) -> str:
        """The word held back, on this line or the next one."""
        if not self._word:
            return ""
        word, space, width = self._word, self._space, max(self._width(), 1)
        end = self._column + columns(space) + columns(word)
        self._word = self._space = ""
        if self._column and end > width and not self._too_long:
            self._column = columns(word) % (width + 1)
            return "\n" + word
        self._column = end if end <= width else end % width
        return space + word


def columns(text: str) -> int:
    """Columns that `text` takes on a terminal, about: a tab counts as eight."""
    return sum(_columns_of(character) for character in text)


def _columns_of(character: str) -> int:
    if character < "\u0300":
        return _TAB if character == "\t" else 1
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _terminal_width() -> int:
    return shutil.get_terminal_size().columns

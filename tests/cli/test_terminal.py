from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest

from edgellm.cli import terminal
from edgellm.cli.terminal import Terminal


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def tty(monkeypatch) -> Tty:
    stream = Tty()
    monkeypatch.setattr(terminal, "sys", SimpleNamespace(stdout=io.StringIO(), stderr=stream))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "30")
    return stream


def test_colours_on_a_terminal_unless_told_otherwise(tty, monkeypatch):
    assert Terminal("auto").colored(tty)
    assert not Terminal("never").colored(tty)
    assert Terminal("always").colored(io.StringIO())
    assert not Terminal("auto").colored(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not Terminal("auto").colored(tty)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Terminal("auto").colored(tty)


def test_lines_on_stderr_are_filtered_and_styled(tty):
    Terminal("auto").warn("a\x1b]0;title\x07b", "red")
    assert tty.getvalue() == "\x1b[31ma]0;titleb\x1b[0m\n"


def test_long_lines_break_between_words_on_a_terminal(tty, monkeypatch):
    Terminal("never").warn("one two three four five six seven eight")
    assert tty.getvalue() == "one two three four five six\n  seven eight\n"
    monkeypatch.setenv("COLUMNS", "1")
    Terminal("never").warn("one two three four five six seven eight")
    assert tty.getvalue().endswith("one two three four five six seven eight\n")


def test_quiet_and_verbose(capsys):
    Terminal("never", quiet=True).say("said")
    Terminal("never").detail("detail")
    assert capsys.readouterr().err == ""
    Terminal("never", verbose=True).detail("detail")
    assert capsys.readouterr().err == "detail\n"


def test_json_is_ascii_and_has_no_nan(capsys):
    Terminal("never").json({"a": "naïve \u202e\udcff"})
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == {"a": "naïve \u202e\udcff"}
    with pytest.raises(ValueError, match="JSON"):
        Terminal("never").json(float("nan"))


def test_a_closed_stream_is_no_terminal():
    stream = io.StringIO()
    stream.close()
    assert not terminal.is_terminal(stream)
    assert not terminal.is_terminal(None)
    assert not terminal.is_terminal(SimpleNamespace(isatty=lambda: False))

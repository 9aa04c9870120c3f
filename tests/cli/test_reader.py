from __future__ import annotations

import io
import os
import stat
import sys

import pytest

from edgellm.cli import reader, stdin
from edgellm.cli.reader import read_message
from edgellm.cli.terminal import Terminal
from edgellm.errors import UsageError


def messages(text: str) -> list[str | None]:
    lines = iter(text.split("\n"))
    found = []
    while True:
        message = read_message(lambda prompt: next(lines, None))
        found.append(message)
        if message is None:
            return found


def test_a_line_is_a_message():
    assert messages("one\n\ntwo") == ["one", "", "two", None]


def test_a_fence_holds_several_lines():
    assert messages('"""one\ntwo"""\nthree') == ["one\ntwo", "three", None]
    assert messages('"""\n  one\n\ntwo\n"""\nthree') == ["  one\n\ntwo", "three", None]
    assert messages('"""one"""') == ["one", None]
    assert messages('"""""" ') == ["", None]


def test_a_fence_that_the_end_closes():
    assert messages('"""one\ntwo') == ["one\ntwo", None]


def feed(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))


def test_plain_lines_are_utf8_whatever_the_locale(monkeypatch):
    feed(monkeypatch, "\ufeffnaïve\r\nzwei\n".encode() + b"\xff!")
    plain = reader.PlainReader(Terminal("never"))
    assert [plain.read() for _ in range(4)] == ["naïve", "zwei", "\ufffd!", None]


def test_reading_all_says_what_was_replaced(monkeypatch):
    feed(monkeypatch, b"a\xffb")
    assert stdin.read_all() == ("a\ufffdb", True)
    feed(monkeypatch, "né".encode())
    assert stdin.read_all() == ("né", False)


def test_an_endless_pipe_ends(monkeypatch):
    monkeypatch.setattr(stdin, "MAX_STDIN_BYTES", 10)
    feed(monkeypatch, b"x" * 11)
    with pytest.raises(UsageError):
        stdin.read_all()


def test_closed_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert stdin.read_line() is None
    with pytest.raises(UsageError):
        stdin.read_all()


def test_off_a_terminal_lines_are_plain(monkeypatch):
    feed(monkeypatch, b"")
    assert isinstance(reader.open_reader(Terminal(), history=True), reader.PlainReader)


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_the_history_is_private(environment, monkeypatch, tmp_path):
    monkeypatch.setenv("EDGELLM_STATE_DIR", str(tmp_path / "state"))
    before = os.umask(0)
    try:
        path = reader.history_file(Terminal())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_history_that_cannot_be_kept_is_said_and_is_no_error(environment, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGELLM_STATE_DIR", str(tmp_path / "file"))
    assert reader.history_file(Terminal("never")) is None
    assert "the history is not kept" in capsys.readouterr().err

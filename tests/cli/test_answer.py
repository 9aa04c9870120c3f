from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.cli import answer
from edgellm.cli.answer import AnswerPrinter, WordWrap, columns
from edgellm.cli.terminal import Terminal


def wrapped(text: str, width: int, step: int = 3) -> str:
    wrap = WordWrap(lambda: width)
    pieces = [wrap.push(text[at : at + step]) for at in range(0, len(text), step)]
    return "".join([*pieces, wrap.finish()])


def test_lines_break_between_words():
    assert wrapped("the quick brown fox", 10) == "the quick\nbrown fox"
    assert wrapped("the quick brown fox", 80) == "the quick brown fox"


def test_indentation_and_blank_lines_stay():
    assert wrapped("a\n\n    b c\n", 10) == "a\n\n    b c\n"


def test_long_words_are_left_to_the_terminal():
    assert wrapped("a " + "x" * 25 + " b", 10) == "a\n" + "x" * 25 + " b"
    wrap = WordWrap(lambda: 10)
    assert wrap.push("x" * 10) == ""
    assert wrap.push("xx") == "x" * 12
    assert wrap.push("x") == "x"


def test_wide_characters_are_words_and_take_two_columns():
    assert columns("北a\u0301🙂") == 5
    assert wrapped("北京上海", 5) == "北京\n上海"


@settings(max_examples=100)
@given(st.text(alphabet="ab \n\t北", max_size=60), st.integers(4, 20), st.integers(1, 7))
def test_nothing_but_blanks_and_breaks_changes(text, width, step):
    shown = wrapped(text, width, step)
    assert "".join(shown.split()) == "".join(text.split())
    assert shown == wrapped(text, width, 1)
    for line in shown.split("\n"):
        assert columns(line) <= width or len(line.split()) <= 1 or "\t" in line


@pytest.mark.parametrize(
    ("pieces", "expected"), [(["a", "b"], "ab\n"), (["a\n"], "a\n"), ([], "\n"), (["a\n", "", "\x07"], "a\n")]
)
def test_an_answer_ends_its_line_once(pieces, expected, capsys):
    printer = AnswerPrinter(Terminal("never"))
    for piece in pieces:
        printer.write(piece)
    printer.finish()
    assert capsys.readouterr().out == expected


def test_wrapping_is_for_terminals_and_can_be_left_out(monkeypatch, capsys):
    def shown(**options: bool) -> str:
        printer = AnswerPrinter(Terminal("never"), **options)
        printer.write("one two three")
        printer.finish()
        return capsys.readouterr().out

    monkeypatch.setattr(answer, "_terminal_width", lambda: 8)
    assert shown() == "one two three\n"
    monkeypatch.setattr(answer, "is_terminal", lambda stream: True)
    assert shown() == "one two\nthree\n"
    assert shown(wrap=False) == shown(raw=True) == "one two three\n"

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgellm.backends.cpu.jit import kernel
from edgellm.cli import status_line
from edgellm.cli.compiling import Compiling
from edgellm.cli.status_line import StatusLine
from edgellm.cli.terminal import Terminal

numba = pytest.importorskip("numba")
compiles = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="NUMBA_DISABLE_JIT is set")


def a_kernel(factor: int):
    @kernel
    def inner(x):
        return x * factor

    @kernel
    def outer(x):
        return inner(x) + 1

    return outer


@pytest.fixture
def screen(monkeypatch, capsys) -> Callable[[], str]:
    """stderr is a terminal; what was written to it."""
    monkeypatch.setattr(status_line, "is_terminal", lambda stream: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    return lambda: capsys.readouterr().err


@compiles
def test_off_a_terminal_a_line_at_the_start_and_one_at_the_end(capsys):
    with Compiling(Terminal("never")) as compiling:
        assert a_kernel(3)(2) == 7
    start, end = capsys.readouterr().err.splitlines()
    assert start.startswith("compiling kernels for ")
    assert end.startswith("compiled 2 kernels in ")
    assert compiling.compiled == 2
    assert compiling.seconds > 0


@compiles
def test_what_is_compiled_already_is_not_mentioned(capsys):
    outer = a_kernel(5)
    assert outer(1) == 6
    with Compiling(Terminal("never")):
        assert outer(2) == 11
    assert capsys.readouterr().err == ""


@compiles
def test_a_terminal_sees_a_count_that_is_taken_away(screen):
    with Compiling(Terminal("never")):
        assert a_kernel(7)(1) == 8
    shown = screen().split("\r\x1b[K")
    assert [text.split(": ")[1][:6] for text in shown[1:3]] == ["0 done", "0 done"]
    assert "1 done" in shown[3]
    assert shown[-1].startswith("compiled 2 kernels in ")


@compiles
def test_the_loading_bar_makes_room(screen):
    room = []
    with Compiling(Terminal("never"), make_room=lambda: room.append(1)):
        assert a_kernel(11)(1) == 12
    assert len(room) == 4


@compiles
def test_quiet_says_nothing(capsys):
    with Compiling(Terminal("never", quiet=True)):
        assert a_kernel(9)(1) == 10
    assert capsys.readouterr().err == ""


def test_a_failure_has_no_summary(capsys):
    def fail(compiling: Compiling) -> None:
        with compiling:
            compiling._hear("op_add", None)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail(Compiling(Terminal("never")))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_status_line_fits_the_screen_and_leaves_it_clean(screen, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10")
    with StatusLine(Terminal("never")) as line:
        line.show("0123456789abc")
    assert screen() == "\r\x1b[K012345678\r\x1b[K"


@pytest.mark.parametrize(("term", "quiet"), [("dumb", False), ("xterm", True)])
def test_no_status_line_where_it_is_not_wanted(screen, monkeypatch, term, quiet):
    monkeypatch.setenv("TERM", term)
    with StatusLine(Terminal("never", quiet=quiet)) as line:
        line.show("working")
        assert not line.live
    assert screen() == ""

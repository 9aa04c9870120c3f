"""`edgellm chat` as a person meets it: on a pseudo-terminal."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")

PROMPT = ">>>"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")


def _hear_hangups() -> None:
    """A run of the tests under nohup ignores them, and so would what it starts."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def chat(environment, tiny) -> Callable[..., pexpect.spawn]:
    """A chat on a terminal, up to its first prompt."""
    spawned = []

    def start(*words: str, **changes: str) -> pexpect.spawn:
        command = ["-m", "edgellm", "chat", str(tiny), *words]
        child = pexpect.spawn(
            sys.executable,
            command,
            env=environment | {"PROMPT_TOOLKIT_NO_CPR": "1"} | changes,
            timeout=20,
            encoding="utf-8",
            dimensions=(40, 120),
            preexec_fn=_hear_hangups,
        )
        child.delaybeforesend = 0.1
        spawned.append(child)
        child.expect_exact(PROMPT)
        return child

    yield start
    for child in spawned:
        child.close(force=True)


def code(child: pexpect.spawn) -> int:
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def shown(text: str) -> str:
    return _ESCAPES.sub("", text)


def test_a_conversation(chat):
    child = chat("-n", "5", "--stats")
    child.sendline("hello")
    child.expect(r"gen \d+ tok")
    child.expect_exact(PROMPT)
    child.sendline("/bye")
    assert code(child) == 0


def test_ctrl_c_stops_the_answer_and_keeps_it(chat):
    child = chat("-n", "30000", "--context", "32768")
    child.sendline("hello")
    child.expect(r"\n[^\n]{40,}")  # some of the answer
    child.sendintr()
    child.expect_exact("(stopped)")
    child.expect_exact(PROMPT)
    child.sendline("/show")
    child.expect_exact("2 messages")
    child.expect_exact(PROMPT)
    child.sendeof()
    assert code(child) == 0


def test_ctrl_c_at_an_empty_prompt_hints_and_twice_leaves(chat):
    child = chat()
    child.sendintr()
    child.expect_exact("Ctrl-D or /bye leaves")
    child.expect_exact(PROMPT)
    time.sleep(1.1)
    child.sendintr()
    child.expect_exact("Ctrl-D or /bye leaves")
    child.expect_exact(PROMPT)
    child.sendintr()
    assert code(child) == 130


def test_ctrl_c_clears_a_line_that_was_begun(chat):
    child = chat()
    child.send("abandoned")
    child.sendintr()
    child.sendline("/bye")
    assert code(child) == 0


def test_a_paste_of_several_lines_is_one_message(chat):
    child = chat("-n", "2")
    child.send("\x1b[200~one\ntwo\x1b[201~\r")
    child.expect_exact("max_tokens")
    child.expect_exact(PROMPT)
    child.sendline("/show")
    child.expect_exact("2 messages")


def test_what_is_typed_during_an_answer_waits_for_the_prompt(chat):
    child = chat("-n", "1500")
    child.sendline("hello")
    child.expect(r"\n[^\n]{40,}")
    child.send("/show\r")
    child.expect_exact("max_tokens N")
    assert "/show" not in child.before
    child.expect_exact("2 messages")


def test_tab_completes_a_command(chat):
    child = chat()
    child.send("/by\t")
    child.expect_exact("/bye")
    child.send("\r")
    assert code(child) == 0


def test_the_history_is_kept_and_can_be_left_out(chat, environment):
    folder = Path(environment["HOME"]) / "state"
    child = chat("--no-history", EDGELLM_STATE_DIR=str(folder))
    child.sendline("/stats")
    child.expect_exact("statistics on")
    child.expect_exact(PROMPT)
    child.sendeof()
    assert code(child) == 0
    assert not folder.exists()
    child = chat(EDGELLM_STATE_DIR=str(folder))
    child.sendline("/stats")
    child.expect_exact("statistics on")
    child.expect_exact(PROMPT)
    child.sendeof()
    assert code(child) == 0
    assert "/stats" in (folder / "chat_history").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_the_chat(chat, number):
    child = chat()
    child.kill(number)
    assert code(child) == 128 + number


def test_no_colours_where_nobody_wants_them(chat):
    child = chat("-n", "2", NO_COLOR="1")
    child.sendline("/sohw")
    child.expect_exact("error: no such command")
    assert "\x1b[31m" not in child.before


def test_a_dumb_terminal_gets_plain_lines(chat):
    child = chat("-n", "2", TERM="dumb")
    assert "\x1b" not in child.before
    child.sendline("/show")
    child.expect_exact("0 messages")
    child.expect_exact(PROMPT)
    assert "\x1b" not in shown(child.before) + child.before
    child.sendeof()
    assert code(child) == 0

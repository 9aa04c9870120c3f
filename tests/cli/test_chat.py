from __future__ import annotations

import os
import signal
import stat
import sys

import pytest

from edgellm.cli import slash
from edgellm.cli.main import main


def test_each_line_is_a_message_and_only_answers_are_on_stdout(cli, scripted):
    scripted.reply = lambda text: "first" if text.count("<|user|>") == 1 else "second\n"
    done = cli("chat", stdin='one\n\n"""two\nlines"""\n')
    assert (done.code, done.out) == (0, "first\nsecond\n")
    assert "1 thread" in done.err
    assert "a note of the model" not in done.err
    assert "a note of the model" in cli("chat", "-v").err
    assert "<|user|>two\nlines<|end|>" in scripted.asked[-1]


def test_quiet_says_nothing_beside_the_answers(cli, scripted):
    done = cli("chat", "-q", stdin="one\n")
    assert (done.out, done.err) == ("Hello!\n", "")


def test_the_start_line_names_what_runs_where(cli, scripted):
    line = cli("chat", "--context", "128").err.splitlines()[0]
    assert line.startswith("guide (the embedded model) · 1.23 k parameters · fake on cpu none · 1 thread")
    assert line.endswith("weights none, 4.1 kB · context 128 float16")


def test_options_reach_the_model(cli, scripted, tmp_path):
    (tmp_path / "m").mkdir()
    words = ["--threads", "2", "--context", "99", "--cache-dtype", "int8", "--backend", "reference", "--force"]
    cli("chat", tmp_path / "m", *words, stdin="")
    assert scripted.options.pop("progress") is not None
    assert scripted.options == {
        "path": str(tmp_path / "m"),
        "threads": 2,
        "context": 99,
        "cache_dtype": "int8",
        "backend": "reference",
        "device": None,
        "gpu_layers": None,
        "force": True,
        "lm_head": None,
        "activations": None,
    }


def test_the_system_prompt(cli, scripted):
    cli("chat", "--system", "Be brief.", stdin="one\n/system Be long.\ntwo\n/system none\nthree\n")
    assert "<|system|>Be brief.<|end|>" in scripted.asked[0]
    assert "<|system|>Be long.<|end|>" in scripted.asked[1]
    assert "<|system|>" not in scripted.asked[2]


def test_control_characters_are_stripped_unless_raw(cli, scripted):
    scripted.reply = lambda text: "a\x1b]52;c;eA==\x07\u202eb"
    assert cli("chat", stdin="x\n").out == "a]52;c;eA==b\n"
    assert cli("chat", "--raw", stdin="x\n").out == "a\x1b]52;c;eA==\x07\u202eb\n"


def test_what_was_dropped_is_said(cli, scripted):
    done = cli("chat", "--context", "64", "-n", "8", stdin="a message of some length\n" * 4)
    assert done.code == 0
    assert done.out == "Hello!\n" * 4
    assert "dropped" in done.err


def test_a_message_that_does_not_fit_is_an_error_and_the_chat_goes_on(cli, scripted):
    done = cli("chat", "--context", "64", stdin="x" * 100 + "\nshort\n")
    assert done.code == 0
    assert done.out == "Hello!\n"
    assert "error:" in done.err


def test_statistics(cli, scripted):
    done = cli("chat", "--stats", stdin="one\n/stats\ntwo\n")
    lines = [line for line in done.err.splitlines() if line.startswith("prompt ")]
    assert len(lines) == 1
    assert "gen 6 tok" in lines[0]
    assert lines[0].endswith("stop eos")


def test_clear_retry_and_edit(cli, scripted):
    cli("chat", stdin="one\n/retry\n/edit two\n/clear\nthree\n")
    assert [text.count("<|user|>") for text in scripted.asked] == [1, 1, 1]  # a retry shows the same text again
    assert "one" in scripted.asked[0]
    assert "two" in scripted.asked[1]
    assert "one" not in scripted.asked[1]
    assert "two" not in scripted.asked[2]


@pytest.mark.skipif(os.name == "nt", reason="a shell script as editor")
def test_edit_opens_the_editor(cli, scripted, tmp_path, monkeypatch):
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i.bak s/one/ONE/ "$1"\n')
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("VISUAL", str(editor))
    cli("chat", stdin="one\n/edit\n")
    assert "ONE" in scripted.asked[-1]
    monkeypatch.setenv("VISUAL", "false")
    assert "exit code 1" in cli("chat", stdin="one\n/edit\n").err
    monkeypatch.setenv("VISUAL", str(tmp_path / "missing"))
    assert "no such editor" in cli("chat", stdin="/edit\n").err


def test_settings(cli, scripted):
    done = cli("chat", stdin="/set max_tokens 3\none\n/set max-tokens default\n/retry\n/set stop l\n/retry\n/set\n")
    assert done.out == "Hel\nHello!\nHe\n"
    assert "stop ['l']" in done.err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/sohw", "Did you mean /show?"),
        ("/usr/bin/env", "a space in front"),
        ("/set temprature 1", "Did you mean temperature?"),
        ("/set temperature hot", "a number"),
        ("/set top_k 1.5", "a whole number"),
        ("/set top_p 2", "top_p"),
        ("/save", "needs a file name"),
        ("/save /no/such/folder/x", "/no/such/folder"),
        ("/load /no/such/file", "/no/such/file"),
        ("/retry", "error:"),
        ("/copy", "nothing to copy"),
    ],
)
def test_a_wrong_command_is_said_and_the_chat_goes_on(line, says, cli, scripted):
    done = cli("chat", stdin=f"{line}\none\n")
    assert (done.code, done.out) == (0, "Hello!\n")
    assert says in done.err


def test_a_message_may_begin_with_a_slash_after_a_space(cli, scripted):
    cli("chat", stdin=" /help\n")
    assert "/help" in scripted.asked[-1]


def test_help_lists_every_command(cli, scripted):
    done = cli("chat", stdin="/help\n/?\n/bye\nnot read\n")
    assert done.out == ""
    assert all(f"/{name}" in done.err for name in slash.COMMANDS)


@pytest.mark.parametrize("word", ["/bye", "/exit", "/quit"])
def test_leaving(word, cli, scripted):
    done = cli("chat", stdin=f"{word}\none\n")
    assert (done.code, done.out) == (0, "")


def test_show_in_the_chat(cli, scripted):
    done = cli("chat", "--temperature", "0", stdin="one\n/show\n")
    assert "2 messages" in done.err
    assert "settings: temperature 0.0" in done.err


def test_a_conversation_goes_to_a_file_and_back(cli, tiny, tmp_path):
    file = tmp_path / "my conversation"
    first = cli("chat", tiny, "-n", "4", stdin=f'hello\n/save "{file}"\n')
    assert file.exists()
    assert "2 messages in" in first.err
    second = cli("chat", tiny, "-n", "4", "--load", file, stdin="/show\n/retry\n")
    assert second.out == first.out
    assert "2 messages from" in second.err


def test_loading_what_is_not_there_ends_the_command(cli, scripted, tmp_path):
    assert cli("chat", "--load", tmp_path / "none").code == 66


def test_a_model_without_a_template_says_what_to_use(cli, bare):
    done = cli("chat", bare, stdin="one\n")
    assert done.code == 65
    assert "edgellm run" in done.err


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_keeps_what_was_written(cli, scripted):
    steps = []

    def before_run(batch):
        steps.append(batch)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    scripted.before_run = before_run
    scripted.reply = lambda text: "a long answer"
    done = cli("chat", stdin="one\n/show\n")
    assert done.code == 0
    assert done.out.startswith("a ")
    assert len(done.out) < len("a long answer")
    assert "(stopped)" in done.err
    assert "2 messages" in done.err


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_two_ctrl_c_within_a_second_leave(cli, scripted):
    def before_run(batch):
        os.kill(os.getpid(), signal.SIGINT)

    scripted.before_run = before_run
    scripted.reply = lambda text: "a long answer"
    assert cli("chat", stdin="one\ntwo\nthree\n").code == 130


def test_the_terminal_is_not_touched_off_a_terminal(scripted, environment, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", "-q"]) == 0
    assert "\x1b" not in "".join(capsys.readouterr())

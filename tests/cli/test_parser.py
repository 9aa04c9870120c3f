from __future__ import annotations

import argparse

import pytest

from edgellm.cli.main import COMMANDS, build_parser, command_module
from edgellm.cli.parser import Parser, actions_of, options_first, variable_of


def parse(*args: str) -> argparse.Namespace:
    return build_parser().parse_args(args)


def test_global_options_count_before_and_after_the_command():
    assert parse("-v", "show").verbose
    assert parse("show", "-v").verbose
    assert not parse("show").verbose
    assert parse("--color", "never", "show").color == "never"
    assert parse("--color", "never", "show", "--color", "always").color == "always"


@pytest.mark.parametrize(
    "words",
    [
        ["run", "m", "p", "--seed", "1"],
        ["run", "m", "--seed", "1", "p"],
        ["run", "--seed=1", "m", "p"],
        ["run", "--seed", "1", "--", "m", "p"],
        ["run", "m", "--", "p", "--seed"],
    ],
)
def test_options_and_words_may_stand_in_any_order(words, monkeypatch):
    if words[-1] == "--seed":
        with pytest.raises(SystemExit):
            parse(*words)
        return
    args = parse(*words)
    assert (args.model, args.prompt, args.seed) == ("m", "p", 1)


def test_values_may_begin_with_a_dash():
    args = parse("run", "--presence-penalty", "-1.5", "--stop", "-x", "p")
    assert args.stop == ["-x"]
    assert args.presence_penalty == -1.5
    assert args.model == "p"


def test_a_prompt_that_begins_with_a_dash_follows_two_dashes():
    args = parse("run", "m", "--", "--help me")
    assert (args.model, args.prompt) == ("m", "--help me")
    assert parse("run", "-").model == "-"


def test_options_first_leaves_the_commands_parser_alone():
    parser = build_parser()
    assert options_first(parser, ["show", "--json"]) == ["show", "--json"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["chta"], "no such command: chta. Did you mean chat?"),
        (["zzz"], "no such command: zzz (there are: chat"),
        (["serve"], "no such command: serve"),
        (["run", "--tempature", "1"], "no such option: --tempature. Did you mean --temperature?"),
        (["--verbos"], "no such option: --verbos. Did you mean --verbose?"),
        (["chat", "--evict", "shfit"], "no such choice: shfit. Did you mean shift?"),
        (["chat", "--color", "yes"], "no such choice: yes"),
        (["show", "a", "b"], "too many arguments: b"),
        (["run", "--seed", "x"], "--seed"),
        (["run", "--seed"], "expected one argument"),
        (["fit", "--context", "0"], "1 or more"),
        (["completion"], "SHELL"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(words, says, capsys):
    with pytest.raises(SystemExit) as end:
        parse(*words)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert says in error
    assert "Traceback" not in error
    assert error.count("\n") == 2  # what is wrong, and where help is


def test_every_option_has_a_variable(monkeypatch):
    monkeypatch.setenv("EDGELLM_TEMPERATURE", "0.5")
    monkeypatch.setenv("EDGELLM_STATS", "yes")
    monkeypatch.setenv("EDGELLM_STOP", "END")
    monkeypatch.setenv("EDGELLM_EVICT", "error")
    monkeypatch.setenv("EDGELLM_VERBOSE", "1")
    monkeypatch.setenv("EDGELLM_RAW", "0")
    args = parse("chat")
    assert (args.temperature, args.stats, args.stop, args.evict) == (0.5, True, ["END"], "error")
    assert args.verbose
    assert not args.raw
    assert parse("chat", "--temperature", "2").temperature == 2


@pytest.mark.parametrize(
    ("name", "value"), [("TEMPERATURE", "warm"), ("STATS", "perhaps"), ("EVICT", "never"), ("CONTEXT", "-1")]
)
def test_a_bad_variable_is_named(name, value, monkeypatch, capsys):
    monkeypatch.setenv(f"EDGELLM_{name}", value)
    with pytest.raises(SystemExit) as end:
        parse("chat")
    assert end.value.code == 2
    assert f"EDGELLM_{name}" in capsys.readouterr().err


def test_no_two_options_of_a_command_share_a_variable():
    for name in COMMANDS:
        parser = Parser(prog=name)
        command_module(name).add_arguments(parser)
        variables = [variable_of(action) for action in actions_of(parser) if variable_of(action)]
        assert len(variables) == len(set(variables))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        parse(name, "--help")
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert out.startswith(f"usage: edgellm {name}")

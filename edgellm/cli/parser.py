"""An argument parser that knows its commands late, reads EDGELLM_<OPTION>, and says what was probably meant."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

_INVALID_CHOICE = re.compile(
    r"invalid choice: (?P<found>'[^']*'|\S+) \((?:maybe you meant .*?, )?choose from (?P<all>.*)\)"
)
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


class Parser(argparse.ArgumentParser):
    """A parser whose arguments `configure` adds the first time it parses or prints.

    Args:
        configure: adds the arguments; None where the caller adds them.
    """

    def __init__(self, *args: Any, configure: Callable[[Parser], None] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self._configure = configure

    def complete(self) -> Parser:
        """This parser with all its arguments."""
        if self._configure is not None:
            configure, self._configure = self._configure, None
            configure(self)
        return self

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.complete()
        apply_environment(self)
        args = options_first(self, sys.argv[1:] if args is None else list(args))
        namespace, extra = super().parse_known_args(args, namespace)
        if extra:
            self.refuse(extra)
        return namespace, extra

    def refuse(self, extra: list[str]) -> NoReturn:
        """Arguments that no action took."""
        unknown = next((word for word in extra if word.startswith("-") and word != "-"), None)
        if unknown is None:
            self.error(f"too many arguments: {' '.join(extra)}")
        name = unknown.split("=")[0]
        self.error(f"no such option: {name}{did_you_mean(name, option_strings(self))}")

    def error(self, message: str) -> NoReturn:
        choice = _INVALID_CHOICE.search(message)
        if choice:
            found = choice["found"].strip("'")
            allowed = re.findall(r"[^\s,']+", choice["all"])
            what = "no such command" if "COMMAND" in message else f"{message.split(':')[0]}: no such choice"
            message = f"{what}: {found}{did_you_mean(found, allowed)} (there are: {', '.join(allowed)})"
        self.exit(2, f"{self.prog}: error: {message}\nTry '{self.prog} --help'.\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse swallows OSError here; a broken pipe must reach the one place that ends the process quietly.
        if message:
            (file or sys.stderr).write(message)


def did_you_mean(name: str, allowed: list[str]) -> str:
    """'. Did you mean X?' where something allowed is close to `name`, else ''."""
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    return f". Did you mean {close[0]}?" if close else ""


def actions_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """All actions of a parser, in order. argparse has no public way to ask; every walker reads this list."""
    return list(parser._actions)


def option_strings(parser: argparse.ArgumentParser) -> list[str]:
    """Every way to write an option of `parser`."""
    return [name for action in actions_of(parser) for name in action.option_strings]


def options_first(parser: argparse.ArgumentParser, args: list[str]) -> list[str]:
    """`args` with the options in front of the positional arguments, a value glued to its option.

    Before Python 3.13 argparse takes an optional positional argument to be absent once an option follows another
    (`run MODEL --seed 1 PROMPT`), and everywhere it takes a value that begins with "-" for an option.
    """
    actions = {name: action for action in actions_of(parser) for name in action.option_strings}
    if any(isinstance(action.choices, dict) for action in actions_of(parser)):  # the commands' own parser
        return args
    options, words, rest = [], [], iter(args)
    for word in rest:
        if word == "--":
            return [*options, "--", *words, *rest]
        action = actions.get(word)
        if action is not None and action.nargs is None:
            value = next(rest, None)
            if value is not None:
                word = f"{word}={value}" if word.startswith("--") else word + value
            options.append(word)
        else:
            (options if action is not None or (word.startswith("-") and word != "-") else words).append(word)
    return options + words


def variable_of(action: argparse.Action) -> str | None:
    """The environment variable that sets an option, None where none does."""
    long = next((name for name in action.option_strings if name.startswith("--")), None)
    if long is None or action.default is argparse.SUPPRESS:
        return None
    return "EDGELLM_" + long[2:].replace("-", "_").upper()


def apply_environment(parser: Parser) -> None:
    """Take the default of every option from EDGELLM_<OPTION> where that is set."""
    for action in actions_of(parser):
        variable = variable_of(action)
        text = os.environ.get(variable) if variable else None
        if text is not None:
            action.default = _read_variable(parser, action, f"{variable}", text)


def _read_variable(parser: Parser, action: argparse.Action, variable: str, text: str) -> Any:
    if action.nargs == 0:
        if text.lower() not in _TRUE + _FALSE:
            parser.error(f"{variable}: found {text!r}, allowed: 1 or 0")
        if text.lower() in _FALSE:
            return action.default
        return action.const if action.const is not None else 1
    try:
        value = action.type(text) if callable(action.type) else text
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        parser.error(f"{variable}: {error}")
    if action.choices is not None and value not in action.choices:
        parser.error(f"{variable}: found {text!r}, allowed: {', '.join(map(str, action.choices))}")
    return [value] if isinstance(action.default, list) or action.nargs == "*" else value

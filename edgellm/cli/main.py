"""`edgellm`: the parser over all commands, and the one place where every way to end becomes an exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from edgellm._version import __version__
from edgellm.cli.parser import Parser
from edgellm.errors import EdgeLLMError, printable

COMMANDS = {
    "chat": "talk with a model in the terminal",
    "run": "answer one prompt, for pipes and scripts",
    "show": "what is in a model",
    "fit": "whether a model fits into this machine's memory",
    "check": "whether a model's files are whole and make sense",
    "verify": "compare a backend with the reference, on this machine",
    "convert": "quantize a checkpoint: a new folder with weights of few bits",
    "distill": "repair a small or pruned model against its teacher, or cut one out of it",
    "eval": "how well a model predicts a text, and how far it is from another model",
    "bench": "how fast a model runs here, and what share of the machine that is",
    "warmup": "compile the CPU backend's kernels now",
    "doctor": "what edgellm finds on this machine",
    "completion": "shell completion for bash, zsh or fish",
}

_EPILOG = """\
MODEL is a safetensors file, a folder, or a name looked up in EDGELLM_MODELS and the data folder;
without one the embedded model answers.  Every option can be set by a variable: EDGELLM_<OPTION>.

exit codes: 0 ok, 1 other, 2 usage, 65 bad model or data, 66 no such file, 69 unavailable, 70 internal,
            73 cannot write, 74 input/output, 75 not enough memory, 130 interrupted, 143 terminated"""

EXIT_IO, EXIT_INTERNAL, EXIT_MEMORY = 74, 70, 75


class Stopped(SystemExit):
    """A signal asked this process to end. A `SystemExit`, since event loops let that pass and swallow what is not.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


def add_global_options(parser: argparse.ArgumentParser, *, defaults: bool) -> None:
    """-v, -q, --debug, --color. A command takes them too, without defaults, so that both places count."""
    group = parser.add_argument_group("everywhere")

    def default(value: Any) -> Any:
        return value if defaults else argparse.SUPPRESS

    group.add_argument("-v", "--verbose", action="store_true", default=default(False), help="say more on stderr")
    group.add_argument("-q", "--quiet", action="store_true", default=default(False), help="say only errors on stderr")
    group.add_argument("--debug", action="store_true", default=default(False), help="show a traceback where one exists")
    group.add_argument("--color", choices=("auto", "always", "never"), default=default("auto"), help="default: auto")


def build_parser() -> Parser:
    """The parser of all commands; a command's own arguments are added when it is parsed."""
    parser = Parser(prog="edgellm", description="Run language models on this machine.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"edgellm {__version__}")
    add_global_options(parser, defaults=True)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", parser_class=Parser)
    for name, summary in COMMANDS.items():
        configure = partial(_configure, name)
        commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", configure=configure)
    return parser


def command_module(name: str) -> Any:
    """The module of a command: `add_arguments(parser)` and `run(args) -> exit code`."""
    return importlib.import_module(f"edgellm.cli.{name}")


def _configure(name: str, parser: Parser) -> None:
    command_module(name).add_arguments(parser)
    add_global_options(parser, defaults=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; nothing but the parser's `SystemExit` leaves this."""
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        parser = build_parser()
        args = parser.parse_args(argv)
        debug = args.debug
        if args.command is None:
            parser.print_help(sys.stderr)
            return 2
        code = command_module(args.command).run(args)
        sys.stdout.flush()
        return code
    except Exception as error:
        if debug and not isinstance(error, BrokenPipeError):
            import traceback

            traceback.print_exc()
        return report(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Stopped as stopped:
        return int(stopped.code)


def report(error: Exception) -> int:
    """Say in one line on stderr what went wrong; the exit code for it."""
    if isinstance(error, BrokenPipeError):
        _drop_stdout()
        return 141
    if isinstance(error, EdgeLLMError):
        message, code = str(error), error.exit_code
    elif isinstance(error, MemoryError):
        message, code = "out of memory. Try a smaller --context, or a smaller model.", EXIT_MEMORY
    elif isinstance(error, OSError):
        message, code = printable(error, 600), EXIT_IO
    else:
        name = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        message = f"internal error: {printable(name, 600)}. Run with --debug for the traceback and report it."
        code = EXIT_INTERNAL
    with contextlib.suppress(OSError, ValueError):
        print(f"edgellm: error: {message}", file=sys.stderr, flush=True)
    return code


def _drop_stdout() -> None:
    """Nobody reads stdout any more: what is buffered goes nowhere, so that Python's exit does not complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def prepare_process() -> None:
    """Any character can be printed, and SIGTERM and SIGHUP end the process through its `finally` blocks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this, or a program without a console
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)


def _stop(number: int, frame: object) -> NoReturn:
    raise Stopped(number)


def entry() -> NoReturn:
    """The console script."""
    prepare_process()
    code = main()
    try:
        sys.stdout.flush()
    except OSError as error:
        code = code or report(error)
        _drop_stdout()
    sys.exit(code)

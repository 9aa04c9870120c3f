"""`edgellm run`: one prompt in, one answer out, for pipes and scripts."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgellm.cli import options
from edgellm.cli.answer import AnswerPrinter
from edgellm.cli.figures import statistics
from edgellm.cli.find_model import is_model
from edgellm.cli.interrupts import Interrupts
from edgellm.cli.loading import load
from edgellm.cli.parser import Parser
from edgellm.cli.stdin import read_all
from edgellm.cli.terminal import Terminal, is_terminal
from edgellm.errors import UsageError, printable

if TYPE_CHECKING:
    from edgellm import LLM, Result, Stream

_ABOUT = """\
The answer goes to stdout, everything else to stderr.

  edgellm run MODEL "PROMPT"      the prompt as an argument
  edgellm run MODEL < prompt.txt  the prompt from standard input (also: edgellm run MODEL -)
  edgellm run "PROMPT"            the embedded model answers

One argument alone is a MODEL where it is written like a path or is a known name, else a PROMPT.
"""


def add_arguments(parser: Parser) -> None:
    """Arguments of `edgellm run`."""
    parser.description = _ABOUT
    parser.usage = "edgellm run [OPTION ...] [MODEL] [PROMPT | -]"
    options.add_model(parser)
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="the prompt; - or nothing reads standard input")
    out = parser.add_argument_group("what is printed")
    out.add_argument("--json", action="store_true", help="one JSON object when the answer is complete")
    out.add_argument(
        "--jsonl", action="store_true", help="a JSON object a line: each piece as it comes, then the result"
    )
    out.add_argument(
        "--logprobs", metavar="N", type=int, help="with --json: log probabilities and the N likeliest tokens"
    )
    out.add_argument("--stats", action="store_true", help="a line of statistics on stderr")
    options.add_system(parser)
    parser.add_argument(
        "--no-template",
        "--raw-prompt",
        action="store_true",
        help="continue the prompt as it is, without a chat template",
    )
    options.add_sampling(parser)
    options.add_running(parser)


def run(args: Namespace) -> int:
    """Answer one prompt; 130 where Ctrl-C cut the answer short."""
    terminal = Terminal.of(args)
    _check(args)
    args.model, args.prompt = _model_and_prompt(args.model, args.prompt, terminal)
    sampling = options.sampling_of(args)
    prompt = _read_prompt(args, terminal)
    with load(args, terminal) as llm:
        stream = _ask(llm, prompt, args, sampling)
        try:
            with Interrupts().stopping(stream.cancel):
                _print_pieces(stream, args, terminal)
            result = stream.result
        finally:
            stream.close()
        _print_result(result, llm, args, terminal)
    return 130 if result.finish_reason == "cancelled" else 0


def _check(args: Namespace) -> None:
    if args.json and args.jsonl:
        raise UsageError("give one of --json and --jsonl")
    if args.logprobs is not None and not (args.json or args.jsonl):
        raise UsageError("needs --json or --jsonl", key="--logprobs")
    if args.no_template and args.system is not None:
        raise UsageError("a system prompt needs the chat template", key="--no-template")


def _model_and_prompt(model: str | None, prompt: str | None, terminal: Terminal) -> tuple[str | None, str | None]:
    """Sort out what one argument alone means; one word may be a model's name with a slip, so that is said."""
    if prompt is not None or model is None or is_model(model):
        return model, prompt
    if len(model.split()) == 1 and model != "-":
        terminal.say(f"note: no model is called {printable(model, 40)}; it is taken as the prompt")
    return None, model


def _read_prompt(args: Namespace, terminal: Terminal) -> str:
    prompt = args.prompt
    if prompt is None or prompt == "-":
        if prompt is None and is_terminal(sys.stdin):
            raise UsageError("no prompt", hint="Give it as an argument, or - to type it and end with Ctrl-D.")
        prompt, replaced = read_all()
        if replaced:
            terminal.warn("note: the prompt is not UTF-8 throughout; other bytes became U+FFFD")
        if not args.no_template:
            prompt = prompt.removesuffix("\n").removesuffix("\r")
    if not prompt:
        raise UsageError("the prompt is empty")
    return prompt


def _ask(llm: LLM, prompt: str, args: Namespace, sampling: dict[str, Any]) -> Stream:
    if args.no_template or llm.template is None:
        if args.system is not None:
            raise UsageError("this model has no chat template, so no system prompt", key="--system")
        return llm.stream(prompt, **sampling)
    return llm.chat(args.system).send(prompt, stream=True, **sampling)


def _print_pieces(stream: Stream, args: Namespace, terminal: Terminal) -> None:
    printer = None if args.json or args.jsonl else AnswerPrinter(terminal, raw=args.raw, wrap=not args.no_wrap)
    try:
        _print_each(stream, args, terminal, printer)
    finally:
        if printer is not None:
            printer.finish()


def _print_each(stream: Stream, args: Namespace, terminal: Terminal, printer: AnswerPrinter | None) -> None:
    for piece in stream:
        if args.jsonl:
            line = {"type": "piece", "text": piece.text, "token": piece.token, "logprob": _logprob(piece.logprob)}
            terminal.write(json.dumps(line) + "\n")
        elif printer is not None:
            printer.write(piece.text)


def _print_result(result: Result, llm: LLM, args: Namespace, terminal: Terminal) -> None:
    if args.jsonl:
        terminal.line(json.dumps({"type": "result", **result_json(result, llm)}))
    elif args.json:
        terminal.json(result_json(result, llm))
    for note in result.notes:
        terminal.say(f"note: {note}")
    if result.finish_reason == "context":
        terminal.warn("note: the context is full; a larger --context lets the answer go on")
    if args.stats:
        terminal.warn(statistics(result, stop_strings=bool(args.stop)), "dim")


def result_json(result: Result, llm: LLM) -> dict[str, Any]:
    """The object that --json prints."""
    keys = ("path", "architecture", "parameters", "quantization", "backend", "device", "context")
    return {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "tokens": list(result.tokens),
        "usage": asdict(result.usage),
        "timings": asdict(result.timings),
        "logprobs": None if result.logprobs is None else [_token_logprob(entry) for entry in result.logprobs],
        "dropped": list(result.dropped),
        "notes": list(result.notes),
        "model": {key: llm.info.get(key) for key in keys},
    }


def _token_logprob(entry: Any) -> dict[str, Any]:
    top = [{"token": token, "logprob": _logprob(logprob)} for token, logprob in entry.top]
    return {"token": entry.token, "text": entry.text, "logprob": _logprob(entry.logprob), "top": top}


def _logprob(value: Any) -> float | None:
    """A JSON number: minus infinity has none."""
    value = getattr(value, "logprob", value)
    return None if value is None or value != value or value in (float("inf"), float("-inf")) else float(value)

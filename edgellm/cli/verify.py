"""`edgellm verify`: the reference against a backend on this machine, op by op."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgellm.cli import options
from edgellm.cli.compiling import Compiling
from edgellm.cli.find_model import find_model
from edgellm.cli.opening import open_named
from edgellm.cli.parser import Parser
from edgellm.cli.terminal import Terminal
from edgellm.errors import OutOfMemoryError, UsageError

if TYPE_CHECKING:
    from edgellm.cli.tracing import Comparison
    from edgellm.model import OpenedModel

EXIT_DIFFERS = 1
_REFERENCE = "reference"


@dataclass(frozen=True)
class Verdict:
    """One comparison: what against what, the bound, the largest relative error and where it was, and the answer."""

    name: str
    bound: float
    error: float
    where: str
    first_beyond: str | None
    ok: bool

    @classmethod
    def of(cls, name: str, comparison: Comparison, bound: float) -> Verdict:
        """The verdict on a comparison."""
        first = comparison.first_beyond
        return cls(name, bound, comparison.worst, comparison.worst_where, first, first is None)


def add_arguments(parser: Parser) -> None:
    """Arguments of `edgellm verify`."""
    parser.description = (
        "Compare a backend with the reference, buffer by buffer, on this machine. Where the reference is the only\n"
        "backend, compare its fused with its plain program. Exit code 0: equal within the bound, 1: not."
    )
    options.add_model(parser)
    options.add_backend(parser)
    parser.add_argument("--bound", metavar="X", type=float, help="largest relative error allowed (default: by backend)")
    parser.add_argument(
        "--tokens", metavar="N", type=options.positive, default=48, help="length of the prompt (default: 48)"
    )
    parser.add_argument("--force", action="store_true", help="run even where the memory plan does not fit")
    options.add_json(parser)


def run(args: Namespace) -> int:
    """Print a line a comparison; the first buffer beyond the bound where there is one."""
    terminal = Terminal.of(args)
    path = find_model(args.model)
    with Compiling(terminal), open_named(path) as opened:
        if args.tokens >= opened.config.max_position_embeddings:
            limit = opened.config.max_position_embeddings - 1
            raise UsageError(
                "longer than the model's context", key="--tokens", found=args.tokens, allowed=f"1 to {limit}"
            )
        _check_memory(path, args)
        verdicts = _compare(opened, args, terminal)
    if args.json:
        terminal.json({"ok": all(v.ok for v in verdicts), "comparisons": [_as_json(v) for v in verdicts]})
    else:
        _print(verdicts, terminal)
    return 0 if all(verdict.ok for verdict in verdicts) else EXIT_DIFFERS


def _check_memory(path: str | None, args: Namespace) -> None:
    """The reference holds every weight as float32: better said now than killed later."""
    import edgellm

    estimate = edgellm.estimate(path, backend=_REFERENCE, context=args.tokens, cache_dtype="float32")
    if not estimate.fits and not args.force:
        needed = f"{estimate.peak_bytes:,} bytes, {estimate.available_bytes:,} are available"
        raise OutOfMemoryError("the reference does not fit", found=needed, hint="--force tries all the same.")


def _compare(opened: OpenedModel, args: Namespace, terminal: Terminal) -> list[Verdict]:
    from edgellm.backends import find
    from edgellm.cli import tracing
    from edgellm.model.fusion import fuse
    from edgellm.model.program import build_program

    backend, reference = find(args.backend, args.device), find(_REFERENCE)
    plain = build_program(opened.config)
    tokens = tracing.prompt(opened.config.vocab_size, args.tokens)
    if backend.name == _REFERENCE:
        terminal.say("only the reference runs here: its fused program is compared with its plain one")
    bound = args.bound or tracing.bound_for(backend.name)
    expected = tracing.run_traced(reference, plain, opened, tokens, threads=args.threads)
    found = tracing.run_traced(backend, fuse(plain), opened, tokens, threads=args.threads)
    verdicts = [
        Verdict.of(f"{backend.name}, fused, against plain reference", tracing.compare(expected, found, bound), bound)
    ]
    runner = backend.load(fuse(plain), opened.weights, threads=args.threads)
    try:
        whole = tracing.logits_in_chunks(runner, tokens, len(tokens))
        for step, name in ((7, "prefill in chunks of 7"), (1, "token by token")):
            chunked = tracing.logits_in_chunks(runner, tokens, step)
            comparison = tracing.compare_logits(whole, chunked, bound)
            verdicts.append(Verdict.of(f"{name} against one chunk, {backend.name}", comparison, bound))
    finally:
        runner.close()
    return verdicts


def _print(verdicts: list[Verdict], terminal: Terminal) -> None:
    import sys

    for verdict in verdicts:
        style, answer = ("green", "equal") if verdict.ok else ("red", "differs")
        error = f"largest error {verdict.error:.1e} ({verdict.where}), bound {verdict.bound:.0e}"
        if verdict.error == 0:
            error = "every value the same"
        terminal.line(f"{terminal.style(style, f'{answer:<7}', sys.stdout)} {verdict.name}: {error}")
        if verdict.first_beyond:
            terminal.line(f"        first beyond the bound: {verdict.first_beyond}")


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return {**asdict(verdict), "error": verdict.error if verdict.error < float("inf") else None}

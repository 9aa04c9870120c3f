"""`edgellm verify`: the reference against a backend on this machine, op by op."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
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
    import numpy as np

    from edgellm.backends.interface import Backend, Runner
    from edgellm.cli.precision import Cost
    from edgellm.cli.tracing import Comparison
    from edgellm.model import OpenedModel, Program, Weights

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
        "backend, compare its fused with its plain program. Exit code 0: equal within the bound, 1: not.\n\n"
        "Kernels are compared at their most exact: the CPU backend with 16-bit activations and an lm_head that keeps\n"
        "its precision, the reference with the float16 weights that the CPU backend stores. What the precision costs\n"
        "that a model runs with by default is said beside it, against the reference as it is: by how much the logits\n"
        "move, how often the likeliest token stays the same, and the mean KL divergence. Nothing bounds those: that\n"
        "is a choice, no error, and it depends on the model. The prompt is of random tokens."
    )
    options.add_model(parser)
    options.add_backend(parser)
    parser.add_argument(
        "--bound", metavar="X", type=float, help="largest relative error allowed (default: by backend and weights)"
    )
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
        verdicts, costs = _compare(opened, args, terminal)
    if args.json:
        comparisons = [_as_json(verdict) for verdict in verdicts]
        costs_found = [asdict(cost) for cost in costs]
        terminal.json({"ok": all(v.ok for v in verdicts), "comparisons": comparisons, "precision": costs_found})
    else:
        _print(verdicts, costs, terminal)
    return 0 if all(verdict.ok for verdict in verdicts) else EXIT_DIFFERS


def _check_memory(path: str | None, args: Namespace) -> None:
    """The reference holds every weight as float32: better said now than killed later."""
    import edgellm

    estimate = edgellm.estimate(path, backend=_REFERENCE, context=args.tokens, cache_dtype="float32")
    if not estimate.fits and not args.force:
        needed = f"{estimate.peak_bytes:,} bytes, {estimate.available_bytes:,} are available"
        raise OutOfMemoryError("the reference does not fit", found=needed, hint="--force tries all the same.")


def _compare(opened: OpenedModel, args: Namespace, terminal: Terminal) -> tuple[list[Verdict], list[Cost]]:
    from edgellm.backends import find
    from edgellm.cli import tracing
    from edgellm.cli.precision import HalfWeights, exact
    from edgellm.model import build_program, fuse

    backend, reference = find(args.backend, args.device), find(_REFERENCE)
    how, dtype = exact(backend.name), backend.cache_dtypes[0]
    plain = build_program(opened.config)
    tokens = tracing.prompt(opened.config.vocab_size, args.tokens)
    if backend.name == _REFERENCE:
        terminal.say("the reference is asked for: its fused program is compared with its plain one")
    weights = HalfWeights(opened.weights) if how.half else opened.weights
    with _loaded(reference, plain, weights, args) as runner:
        expected = tracing.run_traced(runner, tokens, dtype)
    bound = args.bound or how.bound_for(opened.config.num_hidden_layers, opened.quantization is not None)
    with _loaded(backend, fuse(plain), opened.weights, args, **how.options) as runner:
        found = tracing.run_traced(runner, tokens, dtype)
        name = f"{backend.name}, fused, against plain reference"
        verdicts = [Verdict.of(name, tracing.compare(expected, found, bound), bound)]
        whole = found[-1].value
        for step, name in ((7, "prefill in chunks of 7"), (1, "token by token")):
            chunked = tracing.logits_in_chunks(runner, tokens, step, dtype)
            comparison = tracing.compare_logits(whole, chunked, bound)
            verdicts.append(Verdict.of(f"{name} against one chunk, {backend.name}", comparison, bound))
    if not how.options:
        return verdicts, []
    logits = expected[-1].value
    if how.half and weights.changed:
        with _loaded(reference, plain, opened.weights, args) as runner:
            logits = tracing.logits_in_chunks(runner, tokens, len(tokens), dtype)
    return verdicts, _costs(backend, opened, tokens, logits, args)


def _costs(
    backend: Backend, opened: OpenedModel, tokens: list[int], expected: np.ndarray, args: Namespace
) -> list[Cost]:
    """What the precision costs that the model runs with; prefill and decode may have one each."""
    from edgellm.backends import options_for
    from edgellm.cli import tracing
    from edgellm.cli.precision import Cost
    from edgellm.model import build_program, fuse

    chosen = options_for(backend, options.precision_of(args))
    with _loaded(backend, fuse(build_program(opened.config)), opened.weights, args, **chosen) as runner:
        return [
            Cost.of(name, expected, tracing.logits_in_chunks(runner, tokens, step, backend.cache_dtypes[0]))
            for name, step in (("prefill", len(tokens)), ("token by token", 1))
        ]


@contextmanager
def _loaded(backend: Backend, program: Program, weights: Weights, args: Namespace, **chosen: str) -> Iterator[Runner]:
    device = None if backend.name == _REFERENCE else args.device
    runner = backend.load(program, weights, device=device, threads=args.threads, **chosen)
    try:
        yield runner
    finally:
        runner.close()


def _print(verdicts: list[Verdict], costs: list[Cost], terminal: Terminal) -> None:
    import sys

    for verdict in verdicts:
        style, answer = ("green", "equal") if verdict.ok else ("red", "differs")
        error = f"largest error {verdict.error:.1e} ({verdict.where}), bound {verdict.bound:.0e}"
        if verdict.error == 0:
            error = "every value the same"
        terminal.line(f"{terminal.style(style, f'{answer:<7}', sys.stdout)} {verdict.name}: {error}")
        if verdict.first_beyond:
            terminal.line(f"        first beyond the bound: {verdict.first_beyond}")
    for cost in costs:
        same = f"same likeliest token {round(cost.same_top1 * cost.tokens)} of {cost.tokens}"
        figures = f"logits moved by {cost.logit_error:.2%}, {same}, KL divergence {cost.kl_nats:.1e} nats"
        terminal.line(f"costs   {cost.name} at the precision that the model runs with: {figures}")


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return {**asdict(verdict), "error": verdict.error if verdict.error < float("inf") else None}

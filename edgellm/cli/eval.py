"""`edgellm eval`: how well a model predicts a text, and how far it is from another model."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from edgellm.cli import options
from edgellm.cli.compiling import Compiling
from edgellm.cli.figures import peak_bytes, size
from edgellm.cli.find_model import find_model
from edgellm.cli.loading import load
from edgellm.cli.parser import Parser
from edgellm.cli.places import short
from edgellm.cli.status_line import StatusLine
from edgellm.cli.terminal import Terminal
from edgellm.convert.windows import DEFAULT_WINDOW

if TYPE_CHECKING:
    from edgellm import LLM, Evaluation
    from edgellm.convert.evaluate import Sums


def add_arguments(parser: Parser) -> None:
    """Arguments of `edgellm eval`."""
    parser.description = (
        "Perplexity of a text, and with --against how far a model is from another one with the same tokenizer.\n"
        "Every token is counted once, given the tokens before it in its window. A window begins with BOS where the\n"
        "tokenizer puts it; elsewhere the first token of each document is excluded, for nothing predicts it."
    )
    parser.add_argument("model", metavar="MODEL", help="a file, a folder or a name")
    parser.add_argument(
        "text",
        metavar="TEXT",
        help='a text in UTF-8, or .jsonl: a line a document, a string, {"text": ...} or {"messages": [...]}',
    )
    group = parser.add_argument_group("what is measured")
    group.add_argument("--against", metavar="OTHER", help="KL divergence and top-1 agreement against this model")
    group.add_argument(
        "--window",
        metavar="N",
        type=options.positive,
        help=f"tokens given at once (the model's, at most {DEFAULT_WINDOW})",
    )
    group.add_argument(
        "--stride", metavar="N", type=options.positive, help="new tokens counted a window (as many as fit: no overlap)"
    )
    group.add_argument("--text-key", metavar="KEY", default="text", help="of the objects of a .jsonl file (text)")
    running = options.add_backend(parser)
    options.add_gpu_layers(running)
    running.add_argument("--force", action="store_true", help="load even where the memory plan does not fit")
    options.add_json(parser)


def run(args: Namespace) -> int:
    """Print the figures."""
    import edgellm
    from edgellm.convert.documents import file_bytes

    terminal = Terminal.of(args)
    file_bytes(args.text)  # a missing text is said before anything is loaded
    names = [args.model, *([args.against] if args.against else [])]
    paths = [find_model(name) for name in names]
    longest = min(int(edgellm.inspect(path)["max_position_embeddings"]) for path in paths)
    args.context = args.window or min(longest, DEFAULT_WINDOW)
    args.cache_dtype = None
    with ExitStack() as stack:
        models = [stack.enter_context(_load(name, args, terminal)) for name in names]
        line = stack.enter_context(StatusLine(terminal))
        stack.enter_context(Compiling(terminal, make_room=line.clear))
        found = edgellm.evaluate(
            models[0],
            args.text,
            against=models[1] if args.against else None,
            window=args.window,
            stride=args.stride,
            text_key=args.text_key,
            progress=_Shown(line),
        )
    if args.json:
        terminal.json(_facts(found, args, models))
    else:
        for name, text in _lines(found, args):
            terminal.line(f"{name:<15} {text}")
    return 0


def _load(name: str, args: Namespace, terminal: Terminal) -> LLM:
    return load(Namespace(**{**vars(args), "model": name}), terminal)


class _Shown:
    """The line that says how far it is, at most ten times a second."""

    def __init__(self, line: StatusLine) -> None:
        self._line = line
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int, sums: Sums) -> None:
        now = time.monotonic()
        if not self._line.live or now - self._last < 0.1:
            return
        self._last = now
        rate = sums.ran / max(sums.seconds + sums.other_seconds, 1e-9)
        shown = [f"{sums.tokens:,} tokens", f"perplexity {math.exp(min(sums.nll_per_token, 700)):.4g} so far"]
        shown.append(f"{rate:.0f} t/s")
        if 0 < done < total:
            shown.append(f"at most {_clock((now - self._start) * (total - done) / done)} of the file left")
        self._line.show(" · ".join(shown))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _facts(found: Evaluation, args: Namespace, models: list[LLM]) -> dict[str, Any]:
    facts = {"model": str(models[0].info.get("path")), "text": args.text, **found.as_dict()}
    if found.against is not None:
        facts["against"] = {"model": str(models[1].info.get("path")), **facts["against"]}
    where = {key: models[0].info.get(key) for key in ("backend", "device", "isa", "threads")}
    return {**facts, **where, "peak_memory_bytes": peak_bytes()}


def _lines(found: Evaluation, args: Namespace) -> list[tuple[str, str]]:
    """Names and figures as people read them."""
    excluded = f", {found.excluded} excluded that nothing stands before" if found.excluded else ""
    lines = [
        ("perplexity", f"{found.perplexity:.4f}"),
        ("nll", f"{found.nll_per_token:.5f} ± {found.nll_error:.5f} nats a token"),
        ("bits per byte", f"{found.bits_per_byte:.4f}"),
        ("counted", f"{found.tokens:,} tokens, {size(found.bytes)} of {short(args.text)}{excluded}"),
        ("window", f"{found.window}, stride {found.stride}"),
        ("speed", f"{found.tokens_per_second:.0f} t/s"),
    ]
    other = found.against
    if other is None:
        return lines
    ratio = found.perplexity / other.perplexity
    return [
        *lines,
        ("against", short(args.against)),
        ("  perplexity", f"{other.perplexity:.4f}, this model's is {ratio - 1:+.2%}"),
        ("  nll", f"{other.nll_per_token:.5f}, this model's is {_difference(found)}"),
        ("  KL", f"mean {other.kl_mean:.5f}, median {other.kl_median:.5f}, 99 % {other.kl_p99:.5f} nats"),
        ("  top-1", f"{other.top1_agreement:.2%} agree"),
    ]


def _difference(found: Evaluation) -> str:
    other = found.against
    return "" if other is None else f"{other.nll_difference:+.5f} ± {other.nll_difference_error:.5f}"

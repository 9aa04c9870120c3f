"""`edgellm fit`: what running a model takes of this machine's memory, before anything is loaded."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from edgellm.cli import options
from edgellm.cli.figures import size
from edgellm.cli.find_model import find_model
from edgellm.cli.parser import Parser
from edgellm.cli.terminal import Terminal

if TYPE_CHECKING:
    from edgellm import Estimate

EXIT_DOES_NOT_FIT = 75
_ROWS = {
    "process_bytes": "Python, libraries, tokenizer",
    "code_bytes": "compiled kernels",
    "weights_bytes": "weights",
    "cache_bytes": "cache",
    "scratch_bytes": "scratch of the largest step",
    "loading_bytes": "only while loading",
    "gpu_weights_bytes": "GPU: weights",
    "gpu_cache_bytes": "GPU: cache",
    "gpu_scratch_bytes": "GPU: scratch of the largest step",
}
_CONTEXT_STEP = 256


def add_arguments(parser: Parser) -> None:
    """Arguments of `edgellm fit`."""
    parser.description = "Whether a model fits into this machine's memory. Exit code 0: it fits, 75: it does not."
    options.add_model(parser)
    options.add_memory(parser)
    parser.add_argument("--slots", metavar="N", type=options.positive, default=1, help="conversations at a time")
    parser.add_argument("--backend", metavar="NAME", help="default: the fastest that can run here")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 ...; never replaced by another")
    options.add_gpu_layers(parser)
    options.add_precision(parser)
    options.add_json(parser)


def run(args: Namespace) -> int:
    """Print the table and the answer."""
    import edgellm

    terminal = Terminal.of(args)
    path = find_model(args.model)
    asked: dict[str, Any] = {
        key: getattr(args, key) for key in ("backend", "device", "gpu_layers", "cache_dtype", "slots")
    }
    asked |= options.precision_of(args)
    longest = int(edgellm.inspect(path)["max_position_embeddings"])
    context = args.context or min(longest, 4096)
    estimate = edgellm.estimate(path, context=context, **asked)
    fitting = largest_context(lambda tokens: edgellm.estimate(path, context=tokens, **asked).fits, longest)
    if args.json:
        terminal.json({**estimate.as_dict(), "context": context, "slots": args.slots, "largest_context": fitting})
    else:
        _print(estimate, context, fitting, longest, terminal)
    return 0 if estimate.fits else EXIT_DOES_NOT_FIT


def largest_context(fits: Any, longest: int) -> int | None:
    """The longest context up to `longest`, in steps of 256, for which `fits` holds; None where none does."""
    if fits(longest):
        return longest
    low, high = 0, -(-longest // _CONTEXT_STEP)  # in steps: low fits (or is 0), high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * _CONTEXT_STEP) else (low, middle)
    return low * _CONTEXT_STEP or None


def _print(estimate: Estimate, context: int, fitting: int | None, longest: int, terminal: Terminal) -> None:
    import sys

    values = estimate.as_dict()
    rows = [(_ROWS[key] + _more(key, estimate, context), values[key]) for key in _ROWS if values[key]]
    rows += [("peak", values["peak_bytes"]), ("available", values["available_bytes"])]
    if values["gpu_available_bytes"] is not None:
        rows.append(("GPU: available", values["gpu_available_bytes"]))
    width = max(len(name) for name, _ in rows)
    for name, nbytes in rows:
        line = f"{name:<{width}}  {'unknown' if nbytes is None else size(nbytes):>8}"
        terminal.line(terminal.style("bold", line, sys.stdout) if name == "peak" else line)
    for note in values.get("notes", ()):
        terminal.say(f"note: {note}")
    answer, style = ("fits", "green") if estimate.fits else ("does not fit", "red")
    terminal.line(terminal.style(style, answer, sys.stdout))
    if estimate.gpu_layers is not None:
        terminal.line(f"{estimate.gpu_layers} layers on the GPU, the rest on the CPU")
    if fitting is None:
        terminal.line("not even the shortest context fits: choose a smaller model or fewer bits")
    elif fitting == longest:
        terminal.line(f"its whole context fits: {longest} tokens")
    else:
        terminal.line(f"largest context that fits: {fitting} of {longest} tokens")


def _more(key: str, estimate: Estimate, context: int) -> str:
    if key in ("cache_bytes", "gpu_cache_bytes"):
        return f" of {context} tokens"
    if key in ("weights_bytes", "gpu_weights_bytes") and estimate.lm_head:
        return f" (lm_head {estimate.lm_head}, {size(estimate.lm_head_bytes)})"
    return ""

"""`edgellm bench`: how fast a model runs here, and what share of the machine's own limits that is."""

from __future__ import annotations

import argparse
import os
import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from edgellm._version import __version__
from edgellm.cli import machine, options
from edgellm.cli.compiling import Compiling
from edgellm.cli.figures import size
from edgellm.cli.find_model import find_model
from edgellm.cli.loading import load
from edgellm.cli.parser import Parser
from edgellm.cli.places import short
from edgellm.cli.status_line import StatusLine
from edgellm.cli.terminal import Terminal
from edgellm.errors import UsageError

if TYPE_CHECKING:
    from edgellm.cli.bench_runs import Measured, Sizes

_PROMPT, _GENERATE, _DEPTHS, _RUNS = 512, 64, (0, 2048), 3
_DEFAULT_CONTEXT = 4096
#: Load average from which the figures are those of a shared machine.
_BUSY = 0.5
_INFO = (
    "parameters",
    "architecture",
    "quantization",
    "weights",
    "weight_bytes",
    "lm_head",
    "lm_head_bytes",
    "activations",
    "cache_bytes",
    "context",
    "cache_dtype",
)
_WHERE = ("backend", "device", "isa", "threads")


def add_arguments(parser: Parser) -> None:
    """Arguments of `edgellm bench`."""
    parser.description = (
        "Time loading, prefill, decode and the first token of a model; medians, least and most of several rounds.\n"
        "The CPU backend's figures are compared with what this machine can read and multiply. Other work on the\n"
        "machine lowers all of them."
    )
    options.add_model(parser)
    options.add_running(parser)
    group = parser.add_argument_group("what is run")
    group.add_argument("--prompt", metavar="N,N", type=_lengths, help=f"tokens of the prompts ({_PROMPT})")
    group.add_argument("--generate", metavar="N", type=options.positive, help=f"tokens generated ({_GENERATE})")
    depths = ",".join(map(str, _DEPTHS))
    group.add_argument("--depth", metavar="N,N", type=_depths, help=f"tokens before those generated ({depths})")
    group.add_argument("--runs", metavar="N", type=options.positive, default=_RUNS, help=f"rounds ({_RUNS})")
    group.add_argument("--profile", action="store_true", help="time by kind of op as well (backends cpu, cuda)")
    group.add_argument(
        "--plot",
        metavar="FILE",
        type=_picture,
        help="draw the figures, --profile's too on backend cpu; a .png or .svg, needs matplotlib (extra plot)",
    )
    options.add_json(parser)


def run(args: Namespace) -> int:
    """Print the figures."""
    terminal = Terminal.of(args)
    path = find_model(args.model)
    if args.profile:
        _require_profile(args)
    if args.plot:
        from edgellm.cli.bench_plot import require

        require(args.plot)
        args.profile = args.profile or _has_profile(args)
    sizes, args.context, notes = choose_sizes(args, path)
    load_average = _load_average()
    if load_average is not None and load_average > _BUSY:
        notes.append(f"other work runs on this machine (load average {load_average:.1f}): figures come out too low")
    for note in notes:
        terminal.say(f"note: {note}", "yellow")
    facts = {**_measure(args, sizes, terminal), "load_average": load_average, "notes": notes}
    if args.profile:
        from edgellm.cli.bench_profile import print_profiles, profiles

        with StatusLine(terminal) as line:
            facts["profile"] = profiles(path, args, sizes, line.show)
    if args.json:
        terminal.json(facts)
    else:
        for name, text in _lines(facts):
            terminal.line(f"{name:<17} {text}")
        if args.profile:
            print_profiles(facts["profile"], terminal)
    if args.plot:
        from edgellm.cli.bench_plot import plot

        plot(facts, args.plot)
        terminal.say(f"drawn: {short(args.plot)}")
    return 0


def choose_sizes(args: Namespace, path: str | None) -> tuple[Sizes, int, list[str]]:
    """What is run and the context for it. What nobody asked for is shortened to fit, which is noted.

    Raises:
        UsageError: what was asked for does not fit `--context`.
    """
    import edgellm
    from edgellm.cli.bench_runs import Sizes

    longest = args.context or int(edgellm.inspect(path)["max_position_embeddings"])
    notes = []
    generate = args.generate or max(min(_GENERATE, longest - 2), 1)
    prompts = args.prompt or (max(min(_PROMPT, longest - 1), 1),)
    depths = args.depth
    if depths is None:
        depths = tuple(depth for depth in _DEPTHS if depth == 0 or depth + generate < longest)
        for left_out in sorted(set(_DEPTHS) - set(depths)):
            notes.append(f"depth {left_out} is left out, the context has {longest} tokens")
    sizes = Sizes(prompts, generate, depths, args.runs)
    if args.context is not None and sizes.context > args.context:
        raise UsageError("too short for what is run", key="--context", found=args.context, allowed=sizes.context)
    return sizes, args.context or max(sizes.context, min(longest, _DEFAULT_CONTEXT)), notes


def _measure(args: Namespace, sizes: Sizes, terminal: Terminal) -> dict[str, Any]:
    from edgellm.backends.cpu import jit_progress
    from edgellm.cli.bench_runs import measure, summary

    before, start = jit_progress.statistics(), time.perf_counter()
    with load(args, terminal) as llm:
        seconds, after = time.perf_counter() - start, jit_progress.statistics()
        with Compiling(terminal), StatusLine(terminal) as line:
            measured: Measured = measure(llm, sizes, line.show)
        info = llm.info
        figures = summary(llm, sizes, measured)
    compiled = {"compiled": after.compiled - before.compiled, "compile_seconds": after.seconds - before.seconds}
    return {
        "model": {"path": short(str(info.get("path", ""))), **{key: info.get(key) for key in _INFO}},
        **{key: info.get(key) for key in _WHERE},
        "rounds": sizes.runs,
        "load": {"seconds": seconds, **compiled},
        **figures,
        "machine": {"processor": machine.processor()["model"], "cores": machine.cores(), **_system()},
        "versions": {"edgellm": __version__, **machine.packages(("numpy", "numba", "llvmlite"))},
    }


def _system() -> dict[str, Any]:
    return {key: machine.system()[key] for key in ("system", "python")}


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and figures as people read them."""
    from edgellm.cli.bench_runs import spread

    loaded, limits = facts["load"], facts["machine_limits"]
    note = f" ({loaded['compile_seconds']:.0f} s of it compiling)" if loaded["compiled"] else ""
    lines = [("load", f"{loaded['seconds']:.2f} s{note}")]
    lines.append(("weights", _weights(facts)))
    for entry in facts["prefill"]:
        share = ""
        if "peak_share" in entry:
            peak = limits["integer_operations_per_second"]
            share = f"  {entry['peak_share']:.0%} of {peak / 1e9:.0f} GOP/s"
        lines.append((f"prefill {entry['tokens']}", _rates(entry["tokens_per_second"]) + share))
    for entry in facts["decode"]:
        share = ""
        if "bandwidth_share" in entry:
            read = size(sum(entry["read_bytes_per_token"].values()))
            bandwidth = limits["read_bytes_per_second"]
            share = f"  {entry['bandwidth_share']:.0%} of {bandwidth / 1e9:.1f} GB/s, {read} a token"
            if "sustained_share" in entry:
                share += f", {entry['sustained_share']:.0%} of the bandwidth on average"
            if facts["backend"] == "cuda":
                share += f", {entry['microseconds_per_layer']:.0f} us a layer"
        lines.append((f"decode at {entry['depth']}", _rates(entry["tokens_per_second"]) + share))
    bandwidths = limits["read_bytes_per_second_measured"]
    if bandwidths:
        median, least, most = (value / 1e9 for value in spread(bandwidths).values())
        shown = f"{median:.1f} GB/s ({least:.1f}-{most:.1f})"
        sustained = limits["read_bytes_per_second_sustained"]
        average = f"; {sustained / 1e9:.1f} on average" if sustained else ""
        lines.append(
            (
                "GPU copies" if facts["backend"] == "cuda" else "machine reads",
                f"{shown}, median of {len(bandwidths)} before and after the rounds{average}",
            )
        )
    first = facts["first_token"]
    seconds = first["seconds"]
    shown = f"{seconds['median']:.3f} s ({seconds['min']:.3f}-{seconds['max']:.3f})"
    lines.append(("first token", f"{shown}, of a prompt of {first['tokens']}"))
    running = size(facts["resident_memory_bytes"])
    lines.append(("peak memory", f"{size(facts['peak_memory_bytes'])}, {running} while running"))
    where = [facts["backend"], facts["isa"], f"{facts['threads']} threads", facts["machine"]["processor"]]
    if facts["threads"] is None:
        where[2] = facts["device"]
    if facts["load_average"] is not None:
        where.append(f"load average {facts['load_average']:.1f}")
    lines.append(("on", " · ".join(str(part) for part in where if part)))
    versions = [f"{name} {version}" for name, version in facts["versions"].items()]
    lines.append(("versions", " · ".join([*versions, facts["machine"]["python"]])))
    return lines


def _rates(rates: dict[str, float]) -> str:
    return f"{_number(rates['median'])} t/s ({_number(rates['min'])}-{_number(rates['max'])})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _load_average() -> float | None:
    """Processes that wanted to run in the last minute, None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _weights(facts: dict[str, Any]) -> str:
    """What the model holds, what its lm_head is stored as, and what a token reads of it."""
    model, first = facts["model"], facts["decode"][0]
    parts = [size(model["weight_bytes"])]
    if model.get("lm_head"):
        parts.append(f"lm_head {model['lm_head']}")
    if "read_bytes_per_token" in first:
        parts.append(f"{size(first['read_bytes_per_token']['weights'])} read a token")
    return " · ".join(parts)


def _has_profile(args: Namespace) -> bool:
    from edgellm.backends import find

    return find(args.backend, args.device).name in ("cpu", "cuda")


def _require_profile(args: Namespace) -> None:
    if not _has_profile(args):
        found = args.backend or args.device
        raise UsageError("that backend has no profile", key="--profile", found=found, allowed="--backend cpu, cuda")


def _lengths(text: str) -> tuple[int, ...]:
    """Lengths from 1 on, without repetition."""
    return tuple(dict.fromkeys(options.positive(part) for part in text.split(",")))


def _picture(text: str) -> str:
    if not text.lower().endswith((".png", ".svg")):
        raise argparse.ArgumentTypeError(f"found {text}, allowed: a name that ends in .png or .svg")
    return text


def _depths(text: str) -> tuple[int, ...]:
    """Depths from 0 on, without repetition; argparse names the option."""
    depths = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    if min(depths) < 0:
        raise argparse.ArgumentTypeError(f"found {text}, allowed: 0 or more")
    return depths

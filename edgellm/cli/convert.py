"""`edgellm convert`: prune and quantize a checkpoint into a new folder, within a limit of memory, resumable."""

from __future__ import annotations

import argparse
import re
import sys
import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from edgellm.cli import bundling, options
from edgellm.cli.figures import count, size
from edgellm.cli.find_model import find_model
from edgellm.cli.parser import Parser
from edgellm.cli.places import short
from edgellm.cli.pruning import add_pruning, pruning_of
from edgellm.cli.status_line import StatusLine
from edgellm.cli.terminal import Terminal, is_terminal

if TYPE_CHECKING:
    from edgellm.convert.forecast import Forecast
    from edgellm.convert.report import Report

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_LINE_EVERY_S = 30.0
_TABLE_WIDTH = 140  # of a report that no terminal bounds
_MANY = 4  # notes alike that are told one by one


def add_arguments(parser: Parser) -> None:
    """Arguments of `edgellm convert`."""
    parser.description = (
        "Quantize a checkpoint, and prune it before: SRC is the folder (or file) of the original, OUT the new folder.\n"
        "What is written is a standard GPTQ or AWQ checkpoint, or one in floating point where it was pruned alone.\n"
        "Only one layer is in memory at a time; an interrupted run goes on with --resume.\n\n"
        "  edgellm convert SRC --bundle FILE.safetensors    SRC in one file, its weights as they are"
    )
    parser.add_argument(
        "src", metavar="SRC", nargs="?", help="a file, a folder or a name: float16, bfloat16 or float32"
    )
    parser.add_argument("out", metavar="OUT", nargs="?", help="the new folder (not needed for --dry-run)")
    _add_quantization(parser)
    add_pruning(parser)
    _add_calibration(parser)
    group = parser.add_argument_group("how it runs")
    group.add_argument("--recipe", metavar="FILE", help="settings from a file of TOML or .json; options count more")
    group.add_argument("--max-ram", metavar="SIZE", type=size_of, help="memory that is not exceeded, such as 6GB")
    group.add_argument("--bundle", metavar="FILE", help="write OUT (without one, SRC as it is) into a single file too")
    group.add_argument("--shard-size", metavar="SIZE", type=size_of, help="largest file of weights (5.37 GB)")
    group.add_argument("--dry-run", action="store_true", help="tell sizes, time and memory; write nothing")
    group.add_argument("--resume", action="store_true", help="go on after the last finished layer")
    group.add_argument("--overwrite", action="store_true", help="replace OUT, and what another run left unfinished")
    options.add_json(parser)


def _add_quantization(parser: Parser) -> None:
    group = parser.add_argument_group("quantization")
    group.add_argument("--target", metavar="DEVICE", help="choose bits and groups for a device; 'list' shows them")
    group.add_argument(
        "--method",
        choices=("gptq", "awq", "rtn"),
        help="rtn needs no calibration (default: gptq); awq writes AWQ's own files at 4 bits, else GPTQ's",
    )
    group.add_argument("--bits", type=int, choices=(2, 3, 4, 8, 16), help="of a weight (4); 16 prunes alone")
    group.add_argument("--group-size", metavar="N", type=int, help="weights that share a scale: 16 to 128, -1 (128)")
    symmetry = group.add_mutually_exclusive_group()
    symmetry.add_argument(
        "--sym", action="store_true", default=None, help="zero point in the middle (default, not awq)"
    )
    symmetry.add_argument("--asym", dest="sym", action="store_false", default=None, help="a zero point for each group")
    group.add_argument(
        "--desc-act", "--act-order", action="store_true", default=None, help="GPTQ's order by activations"
    )
    group.add_argument("--static-groups", action="store_true", default=None, help="groups found before, in file order")
    group.add_argument("--search", choices=("minmax", "mse"), help="how scales are found (minmax)")
    group.add_argument("--damp-percent", metavar="X", type=float, help="GPTQ's dampening (0.01)")
    group.add_argument("--average-bits", metavar="X", type=float, help="mix 2 to 8 bits a linear to this average")
    group.add_argument("--lm-head-bits", type=int, choices=(4, 8), help="quantize the output layer too (GPTQ, RTN)")
    group.add_argument(
        "--keep", metavar="NAME", action="append", default=[], help="leave this linear as it is; may be an expression"
    )


def _add_calibration(parser: Parser) -> None:
    group = parser.add_argument_group("calibration")
    group.add_argument("--calibration", metavar="FILE", help='a text, or .jsonl of {"text"} or {"messages"} (built in)')
    group.add_argument("--sequences", metavar="N", type=options.positive, help="of calibration tokens, at most (128)")
    group.add_argument("--sequence-length", metavar="N", type=options.positive, help="tokens of each (512)")
    group.add_argument("--held-out", metavar="FILE", help="measure perplexity before and after on this text")
    group.add_argument(
        "--plot", metavar="FILE", help="draw error by layer, and size against quality (.png, .svg, .pdf)"
    )
    group.add_argument("--seed", metavar="N", type=int, help="which sequences of a long text are taken (0)")


_SETTINGS = (
    "method", "bits", "group_size", "sym", "desc_act", "static_groups", "search", "damp_percent", "average_bits",
    "lm_head_bits", "calibration", "sequences", "sequence_length", "seed", "max_ram",
)  # fmt: skip


def run(args: Namespace) -> int:
    """Convert, or say what it would take."""
    from edgellm.api import converting
    from edgellm.convert.recipe import read_recipe
    from edgellm.errors import UsageError

    terminal = Terminal.of(args)
    if args.target == "list":
        return _list_targets(args.json, terminal)
    if args.src is None:
        raise UsageError("is missing", key="SRC", hint="Name the model to convert: `edgellm convert SRC OUT`.")
    settings = {key: getattr(args, key) for key in _SETTINGS}
    settings["shard_bytes"] = args.shard_size
    recipe = dict(read_recipe(args.recipe)) if args.recipe else {}
    if args.keep:
        settings["overrides"] = {**recipe.get("overrides", {}), **{name: {"skip": True} for name in args.keep}}
    settings["prune"] = pruning_of(args, recipe)
    source = find_model(args.src)
    if args.bundle:
        bundling.check_bundle(args.bundle, args.overwrite)
        asked = recipe or args.target or any(value is not None for value in settings.values())
        if args.out is None and not asked and not args.dry_run:
            bundling.write(source, args.bundle, terminal, as_json=args.json)
            return 0
    if args.target:
        recipe = {**_target(source, args.target, terminal), **recipe}
    if args.dry_run:
        return _dry_run(converting.forecast(source, recipe=recipe, **settings), args, terminal)
    if args.out is None:
        raise UsageError("is missing", key="OUT", hint="Name the new folder, or say --dry-run.")
    if args.plot:
        from edgellm.convert.plots import check_plot

        check_plot(args.plot)
    with StatusLine(terminal) as line:
        report = converting.convert(
            source, args.out, recipe=recipe, resume=args.resume, overwrite=args.overwrite, held_out=args.held_out,
            progress=_Shown(line, terminal), **settings,
        )  # fmt: skip
    _tell(report, args, terminal)
    if args.bundle:
        bundling.write(args.out, args.bundle, terminal, as_json=False)
    return 0


def _list_targets(as_json: bool, terminal: Terminal) -> int:
    from dataclasses import asdict

    from edgellm.convert.devices import DEVICES

    if as_json:
        terminal.json([asdict(device) for device in DEVICES])
        return 0
    width = max(len(device.name) for device in DEVICES)
    for device in DEVICES:
        terminal.line(f"{device.name:<{width}}  {device.memory_gb:5g} GB  {device.bandwidth_gb_s:5g} GB/s")
    return 0


def _target(source: str | None, name: str, terminal: Terminal) -> dict[str, Any]:
    """Settings for a device, said why on stderr."""
    from edgellm.api.planning import open_path
    from edgellm.convert.devices import find_device
    from edgellm.convert.targets import choose

    with open_path(source) as opened:
        target = choose(opened, find_device(name))
    for sentence in target.why:
        terminal.say(sentence)
    return dict(target.settings())


def size_of(text: str) -> int:
    """Bytes of "6GB", "512 MiB", "1e9" is none; argparse names the option."""
    match = _SIZE.fullmatch(text.strip())
    unit = (match[2].lower().rstrip("b") if match else "?").rstrip("i")
    if match is None or unit not in _UNITS:
        raise argparse.ArgumentTypeError(f"found {text}, allowed: a size such as 6GB or 512MiB")
    factor = _UNITS[unit]
    if "i" in match[2].lower():
        factor = 1024 ** list(_UNITS).index(unit)
    return int(float(match[1]) * factor)


class _Shown:
    """Progress as a line that is written over, or as a line now and then where nobody sees that."""

    def __init__(self, line: StatusLine, terminal: Terminal) -> None:
        self._line, self._terminal = line, terminal
        self._start = self._last = time.monotonic()
        self._first: tuple[float, float] | None = None  # when work was first done, and how much an earlier run did

    def __call__(self, done: float, total: float, label: str) -> None:
        now = time.monotonic()
        if self._first is None or done < self._first[1]:  # work of another kind, such as quantizing after pruning
            self._first = (now, done)
        text = f"{100 * done / total:3.0f} %  {label}{self._left(now, done, total)}"
        if self._line.live:
            self._line.show(text)
        elif now - self._last >= _LINE_EVERY_S:
            self._last = now
            self._terminal.say(text)

    def _left(self, now: float, done: float, total: float) -> str:
        since, before = self._first
        if done <= before or now - since < 1:
            return ""
        return f", {duration((now - since) * (total - done) / (done - before))} left"


def duration(seconds: float) -> str:
    """3 min, 1 h 20 min, 45 s."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _dry_run(forecast: Forecast, args: Namespace, terminal: Terminal) -> int:
    if args.json:
        terminal.json(forecast.as_dict())
        return 0
    smaller = forecast.source_bytes / max(forecast.output_bytes, 1)
    rows = [
        ("source", size(forecast.source_bytes)),
        ("output", f"{size(forecast.output_bytes)} ({smaller:.2g} times smaller)"),
        ("quantized", f"{count(forecast.quantized_weights)} weights at {forecast.bits_per_weight:.2f} bits"),
        ("calibration", f"{forecast.calibration_tokens:,} tokens" if forecast.calibration_tokens else "none"),
        ("memory", f"{size(forecast.peak_bytes)} at its peak ({forecast.peak_at})"),
        ("disk", f"{size(forecast.disk_bytes)} free"),
        ("time", f"about {duration(forecast.seconds)} ({forecast.gflops:.0f} GFLOP/s measured here)"),
    ]
    if not forecast.quantized_weights:
        rows = [row for row in rows if row[0] != "quantized"]
    for name, value in rows:
        terminal.line(f"{name:<12} {value}")
    _say_notes(forecast.notes, terminal)
    return 0


def _tell(report: Report, args: Namespace, terminal: Terminal) -> None:
    if args.plot:
        from edgellm.convert.plots import plot_report

        plot_report(report, args.plot)
    if args.json:
        terminal.json(report.as_dict())
        return
    from rich.console import Console

    from edgellm.cli.report_table import report_tables

    colored = terminal.colored(sys.stdout)
    width = None if is_terminal(sys.stdout) else _TABLE_WIDTH
    console = Console(file=sys.stdout, width=width, force_terminal=colored, no_color=not colored, highlight=False)
    console.print(report_tables(report))
    if report.bits_per_weight is None:
        terminal.say("nothing was quantized: --bits 4 does that too")
    terminal.say(f"wrote {short(report.output)}" + (f" and {short(args.plot)}" if args.plot else ""))


def _say_notes(notes: tuple[str, ...], terminal: Terminal) -> None:
    for note in notes[:_MANY]:
        terminal.say(f"note: {note}")
    if len(notes) > _MANY:
        terminal.say(f"note: and {len(notes) - _MANY} more like these")

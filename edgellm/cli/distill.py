"""`edgellm distill`: a smaller or pruned student, repaired against its teacher."""

from __future__ import annotations

import argparse
import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from edgellm.cli import options
from edgellm.cli.figures import peak_bytes, size
from edgellm.cli.find_model import find_model
from edgellm.cli.main import Stopped
from edgellm.cli.parser import Parser
from edgellm.cli.places import short
from edgellm.cli.status_line import StatusLine
from edgellm.cli.terminal import Terminal
from edgellm.convert.distill.listener import Listener
from edgellm.errors import UsageError

if TYPE_CHECKING:
    from edgellm.convert.distill.plan import MemoryPlan
    from edgellm.convert.distill.quality import Quality
    from edgellm.convert.distill.run import Job
    from edgellm.convert.distill.settings import Settings
    from edgellm.convert.distill.train import Progress

_DESCRIPTION = """\
Repair STUDENT, a pruned or narrow model, against its teacher, or make it smaller first: with --layers, --hidden-size,
--intermediate-size or --heads and no --teacher, the student is cut out of STUDENT, which is then the teacher.
First block by block on hidden states, then by the teacher's logits. OUT is a Hugging Face folder.

This is for small models: the training is float32 on the CPU. Measured on one core of an AMD Zen 4, tokens trained a
second: 4,200 at 0.9 million parameters, 2,300 at 2.9, 320 at 28, 80 at 100 (2.7 GB); a repair takes some 500,000 tokens
and more. The time is predicted from a measured step before training starts; --dry-run stops there.
"""
#: Settings that are options of the same name: how each is read, and what it is.
_TRAINING: dict[str, tuple[Any, str]] = {
    "steps": (int, "steps of logit distillation; 0 ends after the block-by-block repair"),
    "batch_size": (int, "rows a step"),
    "micro_batch": (int, "rows at a time: less memory, the same result but for rounding"),
    "length": (int, "tokens of a row"),
    "temperature": (float, "of both models' distributions"),
    "alpha": (float, "share of the teacher's distribution in the loss; the rest is the text's"),
    "learning_rate": (float, "the highest; it rises linearly and falls along a cosine"),
    "warmup": (float, "share of the steps in which it rises"),
    "weight_decay": (float, "of AdamW, matrices only"),
    "clip": (float, "largest norm of all gradients"),
    "seed": (int, "of the order of rows"),
    "eval_every": (int, "steps between measurements on held-out text"),
    "held_out": (float, "share of the text that is not trained on"),
    "save_seconds": (float, "between savings of the state that --resume goes on from"),
}
_HEALING: dict[str, tuple[Any, str]] = {
    "heal_rows": (int, "rows of the text it sees"),
    "heal_steps": (int, "gradient steps a block"),
    "heal_learning_rate": (float, "their highest rate"),
}


def add_arguments(parser: Parser) -> None:
    """Arguments of `edgellm distill`."""
    from edgellm.convert.distill.settings import DTYPES, HEAL, Settings

    defaults = Settings()
    parser.description = _DESCRIPTION
    parser.add_argument("student", metavar="STUDENT", help="a file, a folder or a name; its weights are not changed")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument("--teacher", metavar="MODEL", help="a model with the same tokenizer (default: STUDENT itself)")
    parser.add_argument(
        "--text",
        metavar="FILE",
        action="append",
        default=[],
        help='text to learn from, may be repeated; .jsonl: a line a string, {"text": ...} or {"messages": [...]}',
    )
    group = parser.add_argument_group("make the student smaller first")
    group.add_argument("--layers", metavar="N|A,B,..", type=_layers, help="how many layers, evenly spread, or which")
    group.add_argument("--hidden-size", metavar="N", type=options.positive, help="the strongest channels")
    group.add_argument("--intermediate-size", metavar="N", type=options.positive, help="the strongest FFN channels")
    group.add_argument("--heads", metavar="N", type=options.positive, help="query heads, with the KV heads they share")
    group = parser.add_argument_group("block-by-block repair")
    group.add_argument("--heal", choices=HEAL, default=defaults.heal, help=f"what it moves ({defaults.heal})")
    _add_settings(group, _HEALING, defaults)
    _add_settings(parser.add_argument_group("logit distillation"), _TRAINING, defaults)
    group = parser.add_argument_group("the run")
    group.add_argument("--dtype", choices=tuple(DTYPES), help="of the written weights (default: as STUDENT's)")
    group.add_argument("--dry-run", action="store_true", help="say memory and time, and write nothing")
    group.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    group.add_argument("--overwrite", action="store_true", help="replace OUT, and the state of an interrupted run")
    group.add_argument("--force", action="store_true", help="begin even where the memory plan does not fit")
    options.add_json(parser)


def run(args: Namespace) -> int:
    """Distill and print the report."""
    from edgellm.api.memory import available_bytes, reserve_bytes
    from edgellm.convert.distill.run import distill
    from edgellm.convert.distill.state import state_path

    terminal = Terminal.of(args)
    job, settings = _job(args), _settings(args)
    available = available_bytes()
    if available is not None:
        available = None if args.force else max(available - reserve_bytes(available), 0)
    try:
        with StatusLine(terminal) as line:
            report = distill(job, settings, available_bytes=available, listener=_Shown(terminal, line))
    except (KeyboardInterrupt, Stopped):
        if state_path(args.out).exists():
            terminal.say("stopped; the same command with --resume goes on from the last saved state", "yellow")
        raise
    report["peak_memory_bytes"] = peak_bytes()
    if args.json:
        terminal.json(report)
    else:
        for name, text in _lines(report, args):
            terminal.line(f"{name:<11} {text}")
    return 0


def _job(args: Namespace) -> Job:
    from edgellm.convert.distill.reduction import Reduction
    from edgellm.convert.distill.run import Job

    if not args.text:
        raise UsageError("nothing to learn from", key="--text", allowed="a text, or a .jsonl file")
    student = find_model(args.student)
    if student is None:
        from edgellm.api.embedded import embedded_path

        student = str(embedded_path())
    return Job(
        student,
        args.out,
        args.text,
        None if args.teacher is None else find_model(args.teacher),
        Reduction(args.layers, args.hidden_size, args.intermediate_size, args.heads),
        args.dtype,
        args.overwrite,
        args.resume,
        args.dry_run,
    )


def _settings(args: Namespace) -> Settings:
    from edgellm.convert.distill.settings import Settings

    return Settings(heal=args.heal, **{key: getattr(args, key) for key in (*_TRAINING, *_HEALING)})


def _add_settings(group: argparse._ArgumentGroup, table: dict[str, tuple[Any, str]], defaults: Settings) -> None:
    for key, (kind, text) in table.items():
        default = getattr(defaults, key)
        shown = "what makes some 1,024 tokens" if default is None else f"{default:g}"
        metavar = "N" if kind is int else "X"
        group.add_argument(
            "--" + key.replace("_", "-"), metavar=metavar, type=kind, default=default, help=f"{text} ({shown})"
        )


def _layers(text: str) -> int | tuple[int, ...]:
    """A number of layers, or their numbers; argparse names the option."""
    return tuple(int(part) for part in text.split(",") if part) if "," in text else options.positive(text)


class _Shown(Listener):
    """Says what happens on stderr, with a line that counts on a terminal."""

    def __init__(self, terminal: Terminal, line: StatusLine) -> None:
        self._terminal, self._line = terminal, line
        self._last = 0.0

    def _say(self, text: str) -> None:
        self._line.clear()
        self._terminal.say(text)

    def memory(self, plan: MemoryPlan) -> None:
        parts = {"teacher": plan.teacher, "student, gradients and moments": plan.student}
        parts["activations"] = plan.activations + plan.logits
        self._say(f"memory: {size(plan.peak)} ({', '.join(f'{name} {size(part)}' for name, part in parts.items())})")

    def note(self, text: str) -> None:
        self._say(f"note: {text}")

    def phase(self, name: str) -> None:
        self._line.show(f"{name} ...")

    def quality(self, name: str, found: Quality) -> None:
        kl = "" if name == "teacher" else f", KL {found.kl:.4f}, top-1 {found.agreement:.1%}"
        self._say(f"{name + ':':<9} perplexity {found.perplexity:.4f}{kl} on {found.tokens:,} held-out tokens")

    def block(self, done: int, count: int) -> None:
        self._line.show(f"block {done} of {count} repaired")

    def predicted(self, facts: dict[str, Any]) -> None:
        if facts["steps"]:
            rate, seconds = facts["tokens_per_second"], facts["seconds"]
            self._say(f"training: {facts['steps']:,} steps, {rate:.0f} t/s measured, about {_clock(seconds)}")

    def step(self, progress: Progress) -> None:
        if progress.measured is not None:
            found = progress.measured
            shown = "not finite" if found["perplexity"] is None else f"{found['perplexity']:.4f}"
            self._say(f"step {progress.step:,}: loss {progress.loss:.4f}, held-out perplexity {shown}")
        now = time.monotonic()
        if now - self._last < 0.2:
            return
        self._last = now
        left = progress.seconds / progress.steps_here * (progress.steps - progress.step)
        self._line.show(
            f"step {progress.step:,} of {progress.steps:,} · loss {progress.loss:.4f} · {_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _lines(report: dict[str, Any], args: Namespace) -> list[tuple[str, str]]:
    """Names and figures as people read them."""
    before, after = report["teacher"]["parameters"], report["student"]["parameters"]
    lines = [("parameters", f"{after:,} of the teacher's {before:,} ({after / before:.1%})")]
    for name, found in report["quality"].items():
        shown = "-" if found["perplexity"] is None else f"{found['perplexity']:.4f}"
        lines.append((name, f"perplexity {shown}, KL {found['kl'] or 0:.4f}, top-1 {found['agreement']:.1%}"))
    if args.dry_run:
        predicted = report["predicted"]
        lines.append(("training", f"about {_clock(predicted['seconds'])}, {predicted['tokens_per_second']:.0f} t/s"))
    else:
        training = report["training"]
        lines.append(("training", f"{training['steps']:,} steps, {training['tokens_per_second']:.0f} t/s"))
        lines.append(("written", f"{short(args.out)}, {report['dtype']}"))
    peak = report["peak_memory_bytes"]
    lines.append(
        ("peak memory", f"{'unknown' if peak is None else size(peak)}, {size(report['memory']['peak_bytes'])} planned")
    )
    return lines

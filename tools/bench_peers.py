"""edgellm beside other engines on the same CPU: llama.cpp, OpenVINO GenAI, CTranslate2, on the same shapes.

    python tools/bench_peers.py setup                     an environment each; llama.cpp is compiled (half an hour)
    python tools/bench_peers.py models --shape llama-3.2-1b
    python tools/bench_peers.py tune --shape llama-3.2-1b
    python tools/bench_peers.py run --shape llama-3.2-1b --depth 0,2048 --rounds 3 --json OUT.json

Weights are random: an engine's time does not depend on them. In a round each engine runs once, in processes of its own,
in an order that turns; a turn during which other processes took more than 5 % of the machine is thrown away and
repeated. Every prompt is new and random, for some engines remember prefixes. Prefill is timed to the first token;
decode are the tokens after it, greedy, the end of text ignored. "first token" runs from the start of the process to the
first token of a prompt of 16, with files in the system's cache and what an engine compiles once already compiled. Bytes
a token are those of the weights in the file (edgellm: as packed), but one row of an embedding that is not the head, and
of the keys and values halfway through a run. The share is of what `edgellm.backends.cpu.measure` reads in the same
rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
if str(REPOSITORY) not in sys.path:  # when started as a file
    sys.path.insert(0, str(REPOSITORY))

from edgellm.cli.machine import packages, processor, system  # noqa: E402
from edgellm.errors import EdgeLLMError, UsageError  # noqa: E402
from tools.make_synthetic import MODELS, model_config  # noqa: E402
from tools.peers.engines import SHAPES, Engine, chosen  # noqa: E402
from tools.peers.environments import PACKAGES, SetupFailed, set_up, versions  # noqa: E402
from tools.peers.models import Allowance, make_models  # noqa: E402
from tools.peers.places import Work, default_work, read_json  # noqa: E402
from tools.peers.rounds import Workload, run_rounds  # noqa: E402
from tools.peers.table import markdown, summary  # noqa: E402
from tools.peers.tune import tune  # noqa: E402
from tools.peers.turns import Patience  # noqa: E402


def say(text: str) -> None:
    """Progress goes to standard error: standard output is the table."""
    print(text, file=sys.stderr, flush=True)


def setup(given: argparse.Namespace) -> int:
    """Make the environments; one that fails does not keep the others from being made."""
    failed = False
    for name in given.environments or PACKAGES:
        if name not in PACKAGES:
            raise UsageError("no such environment", key="setup", found=name, allowed=", ".join(PACKAGES))
        try:
            set_up(name, Work(given.work), given.jobs, say)
        except SetupFailed as failure:
            failed = True
            say(f"{name}: {failure}")
    return int(failed)


def models(given: argparse.Namespace) -> int:
    """Write the models."""
    allowed = Allowance(int(given.gib * 2**30), given.minutes * 60)
    for shape in given.shape:
        make_models(shape, chosen(given.engines), Work(given.work), allowed, say)
    return 0


def tune_all(given: argparse.Namespace) -> int:
    """Choose settings and contenders."""
    for shape in given.shape:
        config, load = model_config(shape), _workload(given)
        found = tune(shape, config, chosen(given.engines), load, Work(given.work), _patience(given), say)
        for name, options in found["choice"].items():
            kept = "contender" if name in found["contenders"] else "too slow to be the fastest at anything"
            others = max(entry["others"] for entry in found["tried"][name])
            noise = f"; NOT QUIET, others took {others:.0%}: tune again" if others > given.quiet / 100 else ""
            print(f"{shape}: {name}: {options} ({kept}{noise})", flush=True)
    return 0


def run(given: argparse.Namespace) -> int:
    """Take the rounds and print the tables."""
    work, load = Work(given.work), _workload(given)
    report: dict[str, Any] = {"weights": "random", "command": shlex.join(sys.argv), "shapes": {}, **_where(work)}
    for shape in given.shape:
        config = model_config(shape)
        engines = _engines(given, shape, work)
        outcome = run_rounds(shape, config, engines, load, given.rounds, work, _patience(given), say)
        tuned = read_json(work.tuned(shape)).get("choice", {})
        facts = {**summary(outcome, config, load), "settings": tuned, "quiet_limit": given.quiet / 100}
        report["shapes"][shape] = facts
        print(markdown(shape, facts, load), end="\n\n", flush=True)
        if given.json:
            given.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


def _engines(given: argparse.Namespace, shape: str, work: Work) -> list[Engine]:
    """Those asked for; else edgellm and the peers that `tune` found to be contenders, all where nothing was tuned."""
    if given.engines:
        return chosen(given.engines)
    contenders = read_json(work.tuned(shape)).get("contenders")
    return [engine for engine in chosen([]) if contenders is None or not engine.is_peer or engine.name in contenders]


def _workload(given: argparse.Namespace) -> Workload:
    return Workload(given.prompt, given.generate, given.depth, given.threads, given.repeat)


def _patience(given: argparse.Namespace) -> Patience:
    return Patience(given.quiet / 100, given.retries, given.wait)


def _where(work: Work) -> dict[str, Any]:
    installed = {name: versions(name, work) for name in PACKAGES if work.python(name).exists()}
    own = packages(("edgellm", "numpy", "numba", "llvmlite"))
    return {"processor": processor(), "cores": os.cpu_count(), "system": system(), "own": own, "peers": installed}


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"found {text}, allowed: 0 or more")
    return numbers


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {text}, allowed: 1 or more")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=default_work(), help="environments and models (%(default)s)")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("setup", help="make environments")
    command.add_argument("environments", nargs="*", help=f"{', '.join(PACKAGES)}; all where none is named")
    command.add_argument("--jobs", type=_positive, default=os.cpu_count(), help="compilers at a time")
    command.set_defaults(run=setup)
    for name, function, text in (
        ("models", models, "write a shape for every engine"),
        ("tune", tune_all, "choose each peer's fastest settings"),
        ("run", run, "take paired rounds and print the table"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--shape", nargs="+", choices=MODELS, default=list(SHAPES))
        command.add_argument("--engines", nargs="+", default=[], help="names, or beginnings of several")
        command.set_defaults(run=function)
        if name == "models":
            command.add_argument("--gib", type=float, default=20.0, help="memory that building a model may take (20)")
            command.add_argument("--minutes", type=float, default=15.0, help="time that it may take (15)")
        else:
            _add_workload(command)
        if name == "run":
            command.add_argument("--rounds", type=_positive, default=3)
            command.add_argument("--json", type=Path, help="write all figures here")
    return parser


def _add_workload(command: argparse.ArgumentParser) -> None:
    command.add_argument("--prompt", type=_numbers, default=(512,), help="tokens of prompts, N,N (512)")
    command.add_argument("--generate", type=_positive, default=64, help="tokens after the first")
    command.add_argument("--depth", type=_numbers, default=(0, 2048), help="tokens before those generated (0,2048)")
    command.add_argument("--threads", type=_positive, default=2)
    command.add_argument("--repeat", type=_positive, default=2, help="times in a process, the best counts")
    command.add_argument("--quiet", type=float, default=5.0, help="percent of the machine that others may take")
    command.add_argument("--retries", type=int, default=3, help="of a turn that others disturbed")
    command.add_argument("--wait", type=float, default=30.0, help="seconds that a turn waits for others to end")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = _parser().parse_args(arguments)
    given.work = given.work.resolve()
    try:
        return given.run(given)
    except EdgeLLMError as error:
        say(f"error: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

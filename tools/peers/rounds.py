"""Paired rounds: every engine once in each, one after the other, in an order that turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tools.peers.engines import Engine, missing, settings
from tools.peers.places import Work
from tools.peers.turns import Patience, Turn, WorkerFailed, take

_SEED = 20240229
#: Context of the process that decodes behind nothing: keys and values of long contexts would count as its memory.
_MARGIN = 32


@dataclass(frozen=True)
class Workload:
    """What is run: tokens of prompts, tokens generated behind so many others, threads.

    Attributes:
        repeat: times that prefill and decode at depth 0 are done in a process; the fastest counts, so that the first
            use of a shape is nobody's loss.
    """

    prompts: tuple[int, ...]
    generate: int
    depths: tuple[int, ...]
    threads: int
    repeat: int = 2


@dataclass
class Figures:
    """An engine's figures, each a list over the rounds in which all was measured.

    Attributes:
        values: by name: "prefill N", "decode N" (tokens a second), "first token", "load" (seconds), "memory" (bytes).
        facts: what the engine reads a token, how the head is stored, versions.
        problem: why there is nothing, or not everything.
        others: the most that others took of the machine in a turn that counted.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    others: float = 0.0


@dataclass
class Outcome:
    """A shape's rounds; `limits` are the machine's bytes and integer operations a second."""

    engines: dict[str, Figures]
    bandwidth: list[float] = field(default_factory=list)
    integer_peak: list[float] = field(default_factory=list)
    thrown_away: int = 0


def run_rounds(
    shape: str,
    config: dict[str, Any],
    engines: list[Engine],
    load: Workload,
    rounds: int,
    work: Work,
    patience: Patience,
    say: Callable[[str], None],
) -> Outcome:
    """All rounds of a shape. An engine that fails is left out from then on, with the reason."""
    outcome = Outcome({engine.name: Figures() for engine in engines})
    before = patience.thrown_away
    for engine in engines:
        figures = outcome.engines[engine.name]
        figures.problem = missing(engine, shape, work)
        figures.facts = work.facts(work.shape(shape) / engine.model)
    for engine in engines:
        if outcome.engines[engine.name].problem is None:
            say(f"{shape}: {engine.name} starts once, so that what it compiles is compiled")
            _start_once(shape, config, engine, load, work, outcome.engines[engine.name])
    for number in range(rounds):
        say(f"{shape}: round {number + 1} of {rounds}: the machine's limits")
        _measure_limits(outcome, load, work, patience)
        turned = engines[number % len(engines) :] + engines[: number % len(engines)]
        for engine in turned:
            figures = outcome.engines[engine.name]
            if figures.problem is not None:
                continue
            say(f"{shape}: round {number + 1} of {rounds}: {engine.name}")
            for position, job in enumerate(jobs(shape, config, engine, load, work, number)):
                try:
                    turn = take(work.python(engine.environment), engine.worker, job, patience)
                except WorkerFailed as failure:
                    figures.problem = str(failure)
                    break
                read_turn(turn, figures, starts=position == 0)
    outcome.thrown_away = patience.thrown_away - before
    return outcome


def jobs(
    shape: str, config: dict[str, Any], engine: Engine, load: Workload, work: Work, number: int
) -> list[dict[str, Any]]:
    """The jobs of an engine's turn: what needs no depth, whose start and memory count too; then the depths.

    Prompts and depths beyond the model's own context are left out.
    """
    longest = config["max_position_embeddings"]
    shared = {
        "model": str(work.shape(shape) / engine.model),
        "vocab_size": config["vocab_size"],
        "threads": load.threads,
        "seed": _SEED + number,
    }
    options = settings(engine, shape, work)
    prompts = [prompt for prompt in load.prompts if prompt < longest]
    steps = [{"prompt": prompt, "generate": 0, "repeat": load.repeat} for prompt in prompts]
    if 0 in load.depths:
        steps.append({"prompt": 1, "generate": load.generate, "repeat": load.repeat})
    context = max([*prompts, load.generate]) + _MARGIN
    plain = {key: value for key, value in options.items() if key != "state"}
    found = [{**shared, "options": plain, "context": context, "steps": steps}]
    depths = [depth for depth in load.depths if 0 < depth < longest - load.generate]
    if depths:
        steps = [{"prompt": depth, "generate": load.generate} for depth in depths]
        context = max(depths) + load.generate + _MARGIN
        found.append({**shared, "options": options, "context": context, "steps": steps})
    return found


def read_turn(turn: Turn, figures: Figures, *, starts: bool) -> None:
    """Add a turn's figures; with those of start and memory where this is the process that `starts` are taken from."""
    best: dict[str, float] = {}
    for step in turn.steps:
        if step["generate"]:
            name = f"decode {step['prompt'] if step['prompt'] > 1 else 0}"
            rate = step["generate"] / step["decode_s"]
        else:
            name, rate = f"prefill {step['prompt']}", step["prompt"] / step["prefill_s"]
        best[name] = max(best.get(name, 0.0), rate)
    loaded = dict(turn.loaded)
    seconds = loaded.pop("seconds")
    if starts:
        best |= {"first token": turn.first_token_s, "load": seconds, "memory": turn.peak_bytes}
    figures.facts = {**figures.facts, **loaded}
    figures.others = max(figures.others, turn.others)
    for name, value in best.items():
        figures.values.setdefault(name, []).append(value)


def _start_once(
    shape: str, config: dict[str, Any], engine: Engine, load: Workload, work: Work, figures: Figures
) -> None:
    """An untimed start, which fills the caches of compiled kernels and tells early that an engine does not run."""
    job = {**jobs(shape, config, engine, load, work, 0)[0], "steps": []}
    try:
        take(work.python(engine.environment), engine.worker, job, Patience(limit=1.0, retries=0, wait_s=0.0))
    except WorkerFailed as failure:
        figures.problem = str(failure)


def _measure_limits(outcome: Outcome, load: Workload, work: Work, patience: Patience) -> None:
    """What the machine reads and multiplies in this round; a machine that cannot say so leaves the shares out."""
    job = {"model": "", "threads": load.threads}
    try:
        turn = take(work.python("edgellm"), "yardstick", job, patience)
    except WorkerFailed:
        return
    if turn.limits is not None:
        outcome.bandwidth.append(turn.limits["bandwidth"])
        outcome.integer_peak.append(turn.limits["integer_peak"])

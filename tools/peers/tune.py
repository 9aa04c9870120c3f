"""`tune`: every engine at each of its settings, the fastest kept; and which peers can be the fastest at anything.

An engine is judged by the time of the workload: the longest prompt, and tokens at every depth. A peer stays a
contender where at any one figure it comes within `CLOSE` of the best; `run` leaves the others out unless asked.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tools.peers.engines import Engine, missing
from tools.peers.places import Work, read_json
from tools.peers.rounds import Figures, Workload, run_rounds
from tools.peers.turns import Patience

CLOSE = 0.8


def tune(
    shape: str,
    config: dict[str, Any],
    engines: Sequence[Engine],
    load: Workload,
    work: Work,
    patience: Patience,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write and return {"choice": options by engine, "contenders": names, "tried": figures of all}."""
    found: dict[str, Any] = read_json(work.tuned(shape)) or {"choice": {}, "tried": {}}

    def measure(engine: Engine, options: dict[str, Any], load: Workload) -> Figures:
        # the file names what is tried while it is tried only: whoever interrupts this leaves what was chosen
        _write({**found, "choice": {**found["choice"], engine.name: options}}, shape, work)
        try:
            return run_rounds(shape, config, [engine], load, 1, work, patience, say).engines[engine.name]
        finally:
            _write(found, shape, work)

    for engine in engines:
        if not engine.is_peer or missing(engine, shape, work) is not None:
            continue
        tried = []
        for choice in engine.choices:
            figures = measure(engine, choice, load)
            if figures.problem is None:
                entry = {"options": choice, "seconds": seconds(figures, load), "rates": rates(figures)}
                tried.append({**entry, "others": figures.others})
            else:
                say(f"{shape}: {engine.name} with {choice}: {figures.problem}")
        for kept in (found["choice"], found["tried"]):
            kept.pop(engine.name, None)
        if not tried:
            continue
        best = min(tried, key=lambda entry: entry["seconds"])
        for refinement in engine.refinements:
            options = {**best["options"], **refinement}
            figures = measure(engine, options, replace(load, depths=()))
            faster = rates(figures)
            if faster and all(rate > best["rates"][name] for name, rate in faster.items()):
                best = {"options": options, "rates": {**best["rates"], **faster}, "others": figures.others}
                tried.append(best)
        found["tried"][engine.name] = tried
        found["choice"][engine.name] = best["options"]
    found["contenders"] = contenders(found)
    _write(found, shape, work)
    return found


def seconds(figures: Figures, load: Workload) -> float:
    """Of the workload: the longest prompt that ran, and the tokens at every depth."""
    found = rates(figures)
    prompts = [int(name.split()[1]) for name in found if name.startswith("prefill")]
    spent = max(prompts) / found[f"prefill {max(prompts)}"] if prompts else 0.0
    return spent + sum(load.generate / rate for name, rate in found.items() if name.startswith("decode"))


def rates(figures: Figures) -> dict[str, float]:
    """Tokens a second by figure."""
    names = [name for name in figures.values if name.startswith(("prefill", "decode"))]
    return {name: statistics.median(figures.values[name]) for name in names}


def contenders(found: dict[str, Any]) -> list[str]:
    """Peers that come within `CLOSE` of the best at one figure at least, with the settings chosen."""
    chosen = {
        name: next(entry["rates"] for entry in tried if entry["options"] == found["choice"][name])
        for name, tried in found["tried"].items()
    }
    best: dict[str, float] = {}
    for figures in chosen.values():
        for name, rate in figures.items():
            best[name] = max(best.get(name, 0.0), rate)
    return [name for name, figures in chosen.items() if any(r >= CLOSE * best[key] for key, r in figures.items())]


def _write(found: dict[str, Any], shape: str, work: Work) -> None:
    work.tuned(shape).write_text(json.dumps(found, indent=1), encoding="utf-8")

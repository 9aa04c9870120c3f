"""Figures as a markdown table, shares of the machine's bandwidth, and edgellm beside the fastest peer."""

from __future__ import annotations

import statistics
from typing import Any

from tools.peers.rounds import Figures, Outcome, Workload

OWN = "edgellm"


def spread(values: list[float]) -> dict[str, Any]:
    """Median, least, most, and what they are of."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": list(values)}


def cache_bytes(config: dict[str, Any], facts: dict[str, Any], tokens: float) -> int:
    """Bytes of keys and values read for a token behind `tokens` others, with scales, without padding."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    head = head_dim * facts["cache_item_bytes"] + facts["cache_head_bytes"]
    return round(2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * head * (tokens + 1))


def token_bytes(config: dict[str, Any], facts: dict[str, Any], depth: int, generate: int) -> int | None:
    """Bytes read for a token in the middle of a run; None where the file's are not known."""
    if "weight_bytes" not in facts:
        return None
    return facts["weight_bytes"] + cache_bytes(config, facts, max(depth, 1) + generate / 2)


def summary(outcome: Outcome, config: dict[str, Any], load: Workload) -> dict[str, Any]:
    """JSON-able facts of a shape. A share is that of the median in the most that the machine read in any round."""
    bandwidth = max(outcome.bandwidth, default=None)
    engines = {}
    for name, figures in outcome.engines.items():
        facts: dict[str, Any] = {"problem": figures.problem, **figures.facts, "others": figures.others}
        facts["figures"] = {key: spread(values) for key, values in figures.values.items()}
        for depth in load.depths:
            read = token_bytes(config, figures.facts, depth, load.generate)
            rates = figures.values.get(f"decode {depth}")
            if read is None or rates is None:
                continue
            facts.setdefault("read_bytes_per_token", {})[depth] = read
            if bandwidth:
                facts.setdefault("bandwidth_share", {})[depth] = statistics.median(rates) * read / bandwidth
        engines[name] = facts
    return {
        "engines": engines,
        "ratios": ratios(outcome),
        "read_bytes_per_second": outcome.bandwidth,
        "integer_operations_per_second": outcome.integer_peak,
        "turns_thrown_away": outcome.thrown_away,
    }


def ratios(outcome: Outcome) -> list[dict[str, Any]]:
    """For every figure and every edgellm, how often it is the best peer: the median over rounds of their quotient.

    The best peer is that of the best median; above 1 edgellm is faster, or takes less time or memory.
    """
    own = {name: figures for name, figures in outcome.engines.items() if name.startswith(OWN)}
    peers = {name: figures for name, figures in outcome.engines.items() if name not in own}
    found = []
    for name, figures in own.items():
        for key, values in figures.values.items():
            best = _best(key, peers)
            if best is None:
                continue
            pairs = list(zip(values, peers[best].values[key], strict=False))
            each = [mine / theirs if _more_is_better(key) else theirs / mine for mine, theirs in pairs]
            found.append({"engine": name, "figure": key, "peer": best, **spread(each)})
    return found


def _best(key: str, peers: dict[str, Figures]) -> str | None:
    medians = {name: statistics.median(figures.values[key]) for name, figures in peers.items() if key in figures.values}
    if not medians:
        return None
    return (max if _more_is_better(key) else min)(medians, key=lambda name: medians[name])


def _more_is_better(key: str) -> bool:
    return key.startswith(("prefill", "decode"))


def markdown(shape: str, facts: dict[str, Any], load: Workload) -> str:
    """The table of a shape, then the ratios; medians over the rounds."""
    keys = [*(f"prefill {prompt}" for prompt in load.prompts), *(f"decode {depth}" for depth in load.depths)]
    head = ["engine", "head", *keys, "first token s", "load s", "memory GB", "MB/token", "of bandwidth"]
    lines = [f"### {shape} (random weights), {load.threads} threads, tokens/s", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * 2 + "---:|" * (len(head) - 2)]
    for name, engine in facts["engines"].items():
        lines.append("| " + " | ".join(_cells(name, engine, keys)) + " |")
    limits = facts["read_bytes_per_second"]
    lines.append("")
    if limits:
        peak = max(facts["integer_operations_per_second"])
        spreads = f"{min(limits) / 1e9:.1f}-{max(limits) / 1e9:.1f} GB/s"
        lines.append(f"The machine read {spreads} and multiplied {peak / 1e9:.0f} GOP/s (int8).")
    lines.append(f"Turns thrown away because others used the machine: {facts['turns_thrown_away']}.")
    disturbed = [
        f"{name} {engine['others']:.0%}" for name, engine in facts["engines"].items() if engine["others"] > 0.05
    ]
    if disturbed:
        lines.append(f"NOT QUIET, others' share in turns that were kept: {', '.join(disturbed)}.")
    lines.append("")
    for ratio in facts["ratios"]:
        spreads = f"{ratio['median']:.2f}x ({ratio['min']:.2f}-{ratio['max']:.2f})"
        lines.append(f"- {ratio['engine']}, {ratio['figure']}: {spreads} of {ratio['peer']}")
    return "\n".join(lines)


def _cells(name: str, engine: dict[str, Any], keys: list[str]) -> list[str]:
    figures = engine["figures"]
    if not figures:
        return [name, engine["problem"] or "nothing measured"]

    def cell(key: str, factor: float = 1.0, digits: int | None = None) -> str:
        if key not in figures:
            return "-"
        value = figures[key]["median"] * factor
        return f"{value:.{(0 if value >= 100 else 1) if digits is None else digits}f}"

    read = engine.get("read_bytes_per_token", {})
    share = engine.get("bandwidth_share", {})
    first = next(iter(read), None)
    cells = [name, str(engine.get("head", "-")), *(cell(key) for key in keys)]
    cells += [cell("first token", digits=2), cell("load", digits=2), cell("memory", 1e-9, 2)]
    cells.append("-" if first is None else f"{read[first] / 1e6:.0f}")
    cells.append(f"{share[first]:.0%}" if first in share else "-")
    if engine["problem"]:
        cells[0] += f" (then: {engine['problem']})"
    return cells

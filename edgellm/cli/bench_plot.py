"""`edgellm bench --plot`: the figures as a picture: decode by depth, prefill by prompt, time by kind of op.

Lines and bars are told apart by marker and hatch as well as by the colours of Okabe and Ito, which people with any
kind of colour vision can tell apart (https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.cli.figures import size
from edgellm.errors import OutputError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _VERMILLION, _GREY = "#0072B2", "#D55E00", "#999999"
_FILLS = (
    (_BLUE, ""),
    ("#E69F00", "//"),
    ("#009E73", ".."),
    ("#CC79A7", "\\\\"),
    ("#56B4E9", "xx"),
    ("#F0E442", "--"),
    (_VERMILLION, "++"),
)
_OTHER = "other"
_SHOWN_FROM = 0.04
_INCHES_A_PANEL, _HEIGHT_INCHES, _DPI = 5.2, 4.8, 150


def require(path: str) -> None:
    """Say now, before anything is timed, what would keep the picture from being drawn.

    Raises:
        UsageError: matplotlib is not installed.
        OutputError: the folder is not there or cannot be written.
    """
    if find_spec("matplotlib") is None:
        raise UsageError("drawing needs matplotlib", key="--plot", hint="pip install 'edgellm[plot]'")
    folder = Path(path).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError("no folder that can be written", file=str(folder), key="--plot")


def plot(facts: dict[str, Any], path: str) -> None:
    """Draw the facts of `edgellm bench` into a .png or .svg. Raises `OutputError`."""
    from matplotlib.figure import Figure

    steps = facts.get("profile", [])
    panels = 2 + bool(steps)
    figure = Figure(figsize=(_INCHES_A_PANEL * panels, _HEIGHT_INCHES), layout="constrained")
    axes = figure.subplots(1, panels)
    _decode(axes[0], facts)
    _prefill(axes[1], facts)
    if steps:
        _profile(axes[2], steps)
    figure.suptitle(_title(facts))
    try:
        figure.savefig(path, dpi=_DPI)
    except OSError as error:
        raise OutputError(f"the picture cannot be written: {error.strerror or error}", file=path) from None


def _title(facts: dict[str, Any]) -> str:
    model = facts["model"]
    name = Path(str(model["path"])).name or str(model["path"])
    where = [facts["backend"], facts["isa"], f"{facts['threads']} threads", facts["machine"]["processor"]]
    head = f"lm_head {model['lm_head']}" if model.get("lm_head") else None
    what = [name, f"weights {size(model['weight_bytes'])}", head, f"median of {facts['rounds']} rounds"]
    return "\n".join(" · ".join(str(part) for part in parts if part) for parts in (what, where))


def _decode(axes: Axes, facts: dict[str, Any]) -> None:
    entries = sorted(facts["decode"], key=lambda entry: entry["depth"])
    depths = [entry["depth"] for entry in entries]
    bandwidth = facts["machine_limits"]["read_bytes_per_second"]
    if bandwidth:
        limits = [bandwidth / sum(entry["read_bytes_per_token"].values()) for entry in entries]
        label = f"what {bandwidth / 1e9:.1f} GB/s can read"
        axes.plot(depths, limits, color=_VERMILLION, linestyle="--", marker="_", markersize=14, label=label)
    shares = [entry.get("bandwidth_share") for entry in entries]
    _measured(axes, depths, entries, shares)
    axes.set(title="Decode", xlabel="tokens before (depth)", ylabel="tokens a second", xticks=depths)


def _prefill(axes: Axes, facts: dict[str, Any]) -> None:
    entries = sorted(facts["prefill"], key=lambda entry: entry["tokens"])
    lengths = [entry["tokens"] for entry in entries]
    peak = facts["machine_limits"]["integer_operations_per_second"]
    if peak and all("operations_per_token" in entry for entry in entries):
        limits = [peak / entry["operations_per_token"] for entry in entries]
        label = f"linears alone at {peak / 1e9:.0f} GOP/s"
        axes.plot(lengths, limits, color=_VERMILLION, linestyle="--", marker="_", markersize=14, label=label)
    _measured(axes, lengths, entries, [entry.get("peak_share") for entry in entries])
    axes.set(title="Prefill", xlabel="tokens of the prompt", ylabel="tokens a second", xticks=lengths)


def _measured(
    axes: Axes, places: Sequence[int], entries: Sequence[dict[str, Any]], shares: Sequence[float | None]
) -> None:
    """Medians with whiskers from least to most, each with its figure and its share of the limit."""
    rates = [entry["tokens_per_second"] for entry in entries]
    medians = [rate["median"] for rate in rates]
    whiskers = [[r["median"] - r["min"] for r in rates], [r["max"] - r["median"] for r in rates]]
    axes.errorbar(places, medians, whiskers, color=_BLUE, marker="o", capsize=4, label="measured (least to most)")
    axes.set_ylim(bottom=0, top=1.2 * axes.get_ylim()[1])
    for place, median, share in zip(places, medians, shares, strict=True):
        text = f"{median:.3g}" + (f"\n{share:.0%}" if share is not None else "")
        below = median > axes.get_ylim()[1] / 4  # where there is room
        offset, side = (-2, "top") if below else (2, "bottom")
        axes.annotate(text, (place, median), (7, offset), textcoords="offset points", va=side)  # beside the whisker
    axes.margins(x=0.15)
    axes.grid(axis="y", color=_GREY, alpha=0.3)
    axes.legend(loc="upper right", frameon=False)


def _profile(axes: Axes, steps: Sequence[dict[str, Any]]) -> None:
    """A bar a step, of all its time, divided by kind of op; what is little everywhere is one part."""
    shares = [{entry["kind"]: entry["share"] for entry in step["ops"]} for step in steps]
    totals = [sum(entry["seconds"] for entry in step["ops"]) for step in steps]
    most: dict[str, float] = {}
    for share in shares:
        for kind, value in share.items():
            most[kind] = max(most.get(kind, 0.0), value)
    ranked = sorted((kind for kind in most if most[kind] >= _SHOWN_FROM), key=lambda kind: -most[kind])
    kinds = ranked[: len(_FILLS)]
    bottoms = [0.0] * len(steps)
    for kind, (color, hatch) in [*zip(kinds, _FILLS, strict=False), (_OTHER, (_GREY, ""))]:
        heights = [
            100 * (1 - sum(share.get(k, 0.0) for k in kinds) if kind == _OTHER else share.get(kind, 0.0))
            for share in shares
        ]
        look = {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.6}
        axes.bar(range(len(steps)), heights, 0.7, bottoms, label=kind, **look)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for place, seconds in enumerate(totals):
        text = f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
        axes.annotate(text, (place, 100), (0, 3), textcoords="offset points", ha="center")
    names = [step["step"].replace(" at depth ", "\nat ").replace(" of ", "\nof ") for step in steps]
    axes.set(title="Time by kind of op", ylabel="% of the step's time", ylim=(0, 109))
    axes.set_xticks(range(len(steps)), names)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)

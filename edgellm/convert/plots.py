"""Plots of reports, with matplotlib (the extra `plot`): error by layer, and size against quality."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgellm.convert.report import Report, layer_errors
from edgellm.errors import OutputError, UsageError


def plot_errors(report: Report, path: str | os.PathLike[str]) -> Path:
    """Error by layer, a line a linear; the file's ending says its kind (.png, .svg, .pdf).

    Raises:
        UsageError: matplotlib is not installed, or the report has no errors by layer.
        OutputError: the file cannot be written.
    """
    by_layer = layer_errors(report.linears)
    if not by_layer:
        raise UsageError("the report has no errors by layer", key="report", found=report.output)
    figure, axes = _figure()
    for leaf in dict.fromkeys(leaf for errors in by_layer.values() for leaf in errors):
        layers = [layer for layer in sorted(by_layer) if leaf in by_layer[layer]]
        axes.plot(layers, [by_layer[layer][leaf] for layer in layers], marker="o", markersize=3, label=leaf)
    axes.set(xlabel="layer", ylabel="relative error", title=f"{report.method}: error by layer")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    return _save(figure, path)


def plot_size_quality(reports: Sequence[Report], path: str | os.PathLike[str]) -> Path:
    """Perplexity over size, a point a stage of each report, the source beside them. Raises as `plot_errors`."""
    points = [(report, stage) for report in reports for stage in report.stages]
    if not points:
        raise UsageError("no report has measured quality", key="reports")
    figure, axes = _figure()
    for report in reports:
        stages = report.stages
        sizes, found = [s.nbytes / 1e6 for s in stages], [s.quality.perplexity for s in stages]
        source = stages[0].quality.against if stages else None
        if source is not None:
            sizes, found = [report.source_bytes / 1e6, *sizes], [source.perplexity, *found]
        axes.plot(sizes, found, marker="o", label=f"{report.method}: {Path(report.output).name}")
        for stage in stages:
            axes.annotate(stage.label, (stage.nbytes / 1e6, stage.quality.perplexity), fontsize="x-small")
    axes.set(xlabel="size, MB", ylabel="perplexity on held-out text", title="size against quality")
    axes.legend(fontsize="small")
    return _save(figure, path)


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "matplotlib is not installed", key="plot", hint="Install it with: pip install 'edgellm[plot]'."
        ) from None
    figure = Figure(figsize=(7, 4.2), layout="constrained")  # no pyplot: no windows, no global state
    return figure, figure.subplots()


def _save(figure: Any, path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot be written ({error})", file=path) from None
    return path

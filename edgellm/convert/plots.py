"""Plots of reports, with matplotlib (the extra `plot`): error by layer, and size against quality."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgellm.convert.report import Report, layer_errors
from edgellm.errors import OutputError, UsageError


def plot_report(report: Report, path: str | os.PathLike[str]) -> Path:
    """Error by layer, and beside it size against quality where quality was measured, in one file.

    Raises: as `plot_errors`.
    """
    panels = [draw for draw, found in ((_errors, layer_errors(report.linears)), (_sizes, report.stages)) if found]
    if not panels:
        hint = "Give a held-out text, or let the run do more than an earlier one had left."
        raise UsageError("the report has neither errors by layer nor quality", key="plot", hint=hint)
    figure, axes = _figure(len(panels))
    for draw, place in zip(panels, axes, strict=True):
        draw(place, [report])
    return _save(figure, path)


def check_plot(path: str | os.PathLike[str]) -> None:
    """Raises `UsageError`, before a long run, where nothing can be drawn: no matplotlib, or no such kind of file."""
    figure, _ = _figure()
    kinds = figure.canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in kinds:
        raise UsageError("no such kind of picture", key="plot", found=os.fspath(path), allowed=", ".join(sorted(kinds)))


def plot_errors(report: Report, path: str | os.PathLike[str]) -> Path:
    """Error by layer, a line a linear; the file's ending says its kind (.png, .svg, .pdf).

    Raises:
        UsageError: matplotlib is not installed, or the report has no errors by layer.
        OutputError: the file cannot be written.
    """
    if not layer_errors(report.linears):
        raise UsageError("the report has no errors by layer", key="report", found=report.output)
    figure, axes = _figure()
    _errors(axes[0], [report])
    return _save(figure, path)


def plot_size_quality(reports: Sequence[Report], path: str | os.PathLike[str]) -> Path:
    """Perplexity over size, a point a stage of each report, the source beside them. Raises as `plot_errors`."""
    if not any(report.stages for report in reports):
        raise UsageError("no report has measured quality", key="reports")
    figure, axes = _figure()
    _sizes(axes[0], reports)
    return _save(figure, path)


def _errors(axes: Any, reports: Sequence[Report]) -> None:
    """Lines of the first report."""
    report = reports[0]
    by_layer = layer_errors(report.linears)
    for leaf in dict.fromkeys(leaf for errors in by_layer.values() for leaf in errors):
        layers = [layer for layer in sorted(by_layer) if leaf in by_layer[layer]]
        axes.plot(layers, [by_layer[layer][leaf] for layer in layers], marker="o", markersize=3, label=leaf)
    axes.set(xlabel="layer", ylabel="relative error", title=f"{report.method}: error by layer")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")


def _sizes(axes: Any, reports: Sequence[Report]) -> None:
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


def _figure(panels: int = 1) -> tuple[Any, Any]:
    """(figure, its axes, one a panel)."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "matplotlib is not installed", key="plot", hint="Install it with: pip install 'edgellm[plot]'."
        ) from None
    figure = Figure(figsize=(7 * panels, 4.2), layout="constrained")  # no pyplot: no windows, no global state
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _save(figure: Any, path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot be written ({error})", file=path) from None
    return path

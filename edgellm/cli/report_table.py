"""A report as people read it: rich tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.convert.report import Report, layer_errors

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_MOST_ROWS = 64


def report_tables(report: Report) -> Group:
    """Sizes and quality in one table, errors by layer in another; print it with a rich console."""
    from rich.console import Group
    from rich.text import Text

    parts: list[object] = [_summary(report)]
    if report.stages:
        parts.append(_quality(report))
    if report.linears:
        parts.append(_errors(report))
    parts += [Text(f"note: {note}") for note in report.notes]
    return Group(*parts)


def _summary(report: Report) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    share = report.output_bytes / report.source_bytes if report.source_bytes else 0.0
    rows = [
        ("from", report.source),
        ("to", report.output),
        ("method", report.method),
        ("size", f"{_mega(report.source_bytes)} -> {_mega(report.output_bytes)} ({share:.1%})"),
    ]
    if report.bits_per_weight is not None:
        rows.append(("bits a weight", f"{report.bits_per_weight:.3f}"))
    rows.append(("time", f"{report.seconds:.1f} s"))
    if report.peak_bytes:
        rows.append(("peak memory", _mega(report.peak_bytes)))
    if report.held_out:
        rows.append(("held-out text", report.held_out))
    for name, text in rows:
        table.add_row(name, Text(text))  # paths are text, not rich's markup
    return table


def _quality(report: Report) -> Table:
    from rich.table import Table

    table = Table(title="quality on held-out text", title_justify="left")
    columns = ("", "size", "perplexity", "bits/byte", "KL mean", "KL median", "KL 99 %", "top-1")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    source = report.stages[0].quality.against
    if source is not None:
        table.add_row("source", _mega(report.source_bytes), f"{source.perplexity:.4f}", "", "", "", "", "")
    for stage in report.stages:
        found, other = stage.quality, stage.quality.against
        measured = [f"{found.perplexity:.4f}", f"{found.bits_per_byte:.4f}"]
        if other is not None:
            measured += [f"{value:.5f}" for value in (other.kl_mean, other.kl_median, other.kl_p99)]
            measured.append(f"{other.top1_agreement:.2%}")
        table.add_row(stage.label, _mega(stage.nbytes), *measured)
    return table


def _errors(report: Report) -> Table:
    from rich.table import Table

    by_layer = layer_errors(report.linears)
    leaves = list(dict.fromkeys(leaf for errors in by_layer.values() for leaf in errors))
    table = Table(title="relative error by layer", title_justify="left")
    table.add_column("layer", justify="right")
    for leaf in leaves:
        table.add_column(leaf, justify="right")
    for layer in sorted(by_layer)[:_MOST_ROWS]:
        errors = by_layer[layer]
        table.add_row(str(layer), *(f"{errors[leaf]:.4f}" if leaf in errors else "" for leaf in leaves))
    return table


def _mega(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"

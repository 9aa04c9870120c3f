"""A table of what kernels did under the emulator."""

from __future__ import annotations

from collections.abc import Mapping

from tools.ptx_emulator.statistics import Statistics

COLUMNS = ("kernel", "launches", "instructions", "loaded", "stored", "efficiency", "sectors", "shared", "conflicts")


def table(statistics: Mapping[str, Statistics]) -> list[str]:
    """A header and a line a kernel, by name, every number a launch's.

    Columns: launches; instructions of warps; bytes of global memory that must be loaded and stored (`touched` of
    `Statistics`); the share of the loaded sectors' bytes that was asked for, and sectors a request; wavefronts of
    shared memory, and those of them that are bank conflicts.
    """
    rows = [COLUMNS]
    for name in sorted(statistics):
        found = statistics[name]
        if not found.launches:
            continue
        loads = found.of("global", "load")
        shared = [found.of("shared", way) for way in ("load", "store")]
        rows.append(
            (
                name,
                str(found.launches),
                _each(found, found.warp_instructions.total()),
                _each(found, found.touched["load"]),
                _each(found, found.touched["store"]),
                f"{loads.efficiency:.2f}" if loads.requests else "-",
                f"{loads.sectors_a_request:.1f}" if loads.requests else "-",
                _each(found, sum(traffic.wavefronts for traffic in shared)),
                _each(found, sum(traffic.conflicts for traffic in shared)),
            )
        )
    widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _each(found: Statistics, total: int) -> str:
    return f"{total / found.launches:,.0f}"

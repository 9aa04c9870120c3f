"""Compile the CUDA kernels into `edgellm/backends/cuda/code`, the PTX that the package carries.

    python -m tools.build_cuda_kernels            compile what has changed, write the folder
    python -m tools.build_cuda_kernels --check    compile everything anew, compare, write nothing; exit code 1: differs
    python -m tools.build_cuda_kernels --table    registers, shared memory, instructions of every kernel on every device
                                                  (kept in tools/cuda_code/measured.json); exit code 1: over a budget

Needs numba-cuda (`pip install .[dev]` on Linux, or `.[cuda13]`); no GPU, no driver, no toolkit.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.backends.cuda.shipped import CODE, INDEX, shipped

if TYPE_CHECKING:
    from tools.cuda_code.build import Built

_SECONDS_BETWEEN_WRITES = 20  # so that a build that is broken off goes on from there


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--all", action="store_true", help="compile also what has not changed")
    parser.add_argument("--check", action="store_true", help="compare with the folder instead of writing it")
    parser.add_argument("--table", action="store_true", help="print what the kernels of the folder take")
    parser.add_argument("--only", default="", metavar="REGEX", help="kernels whose name it matches; the others stay")
    parser.add_argument("--folder", type=Path, default=CODE, help="in place of the package's own")
    chosen = parser.parse_args(arguments)
    if chosen.table:
        return _table(chosen.folder, chosen.only)
    return _build(chosen.folder, chosen.only, everything=chosen.all or chosen.check, write=not chosen.check)


def _build(folder: Path, only: str, *, everything: bool, write: bool) -> int:
    from edgellm.backends.cuda.kernels.declare import all_kernels
    from edgellm.backends.cuda.kernels.sources import digest
    from tools.cuda_code.build import build, kept

    kernels = all_kernels()
    for kernel in kernels.values():
        digest(kernel.module)  # kept: a file edited from now on must not lend its digest to older code
    old = shipped(folder) if (folder / INDEX).exists() else None
    made: list[Built] = []
    written = time.monotonic()
    picked = {name: kernel for name, kernel in kernels.items() if re.search(only, name)}
    for name, kernel in picked.items():
        built, compiled = build(kernel, None if everything else old)
        made.append(built)
        if compiled:
            print(name, ", ".join(f"sm_{target} {len(text)} bytes" for target, text in built.texts.items()), flush=True)
        if write and time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
            others = kept(old, kernels, {one.kernel.name for one in made}) if old else []
            _compare(folder, made + others, write=True)
            written = time.monotonic()
    rest = kept(old, kernels, set(picked)) if old else []
    differs = _compare(folder, made + rest, write=write)
    for path in differs:
        print(f"{'wrote' if write else 'differs:'} {path.name}")
    return 0 if write or not differs else 1


def _compare(folder: Path, built: list[Built], *, write: bool) -> list[Path]:
    """Files of the folder that are not what was built, or should not be; made right where `write`."""
    from tools.cuda_code.build import files

    wanted = {folder / name: data for name, data in files(built).items()}
    differs = [path for path, data in wanted.items() if not path.exists() or path.read_bytes() != data]
    stale = [path for path in folder.glob("*.ptx") if path not in wanted]
    if write:
        folder.mkdir(exist_ok=True)
        for path in differs:
            path.write_bytes(wanted[path])
        for path in stale:
            path.unlink()
    return differs + stale


def _table(folder: Path, only: str) -> int:
    """Measure what has changed, print; exit code 1 where a kernel does not keep to its budget."""
    from edgellm.backends.cuda.kernels.declare import all_kernels
    from tools.cuda_code.measured import MEASURED, bring_up_to_date, broken, lines

    code = shipped(folder)
    budgets = {name: kernel.budget for name, kernel in all_kernels().items()}
    kept = MEASURED if folder == CODE else folder / MEASURED.name
    rows = bring_up_to_date(code, budgets, lambda line: print(line, file=sys.stderr, flush=True), kept)
    rows = {name: devices for name, devices in rows.items() if re.search(only, name)}
    print("\n".join(lines(rows)))
    failures = 0
    for name, devices in rows.items():
        for capability, row in devices.items():
            for what in broken(row, budgets[name]):
                print(f"{name} on sm_{capability}: {what}")
                failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

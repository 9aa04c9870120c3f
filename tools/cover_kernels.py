"""Which lines of the CPU backend its tests reach while the JIT is off, a table by file; fails under `BOUND`.

    python -m tools.cover_kernels [--html FOLDER] [pytest arguments]

Compiled code leaves no trace in coverage.py, so kernels run as plain Python here (`simd/emulate.py`), every access to
memory checked; the tests take their smallest cases by themselves. Nothing is left out of the count: what only compiled
code, another system or another process reaches stands in the column of missing lines. Needs coverage.py, which no
test does: `pip install coverage`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BOUND = 95
#: Least a file with kernels must reach by itself: the total hides one that nothing runs. Others, such as the one that
#: calls the compiler (`native_build.py`), have the compiled run of the tests.
FILE_BOUND = 80
SOURCE = "edgellm/backends/cpu"


def _coverage(data: Path, *arguments: str) -> int:
    environ = {**os.environ, "NUMBA_DISABLE_JIT": "1", "OMP_NUM_THREADS": "1", "COVERAGE_FILE": str(data)}
    return subprocess.run([sys.executable, "-m", "coverage", *arguments], cwd=ROOT, env=environ, check=False).returncode


def _low_files(data: Path) -> list[str]:
    """Files with kernels under `FILE_BOUND`, with their percentage."""
    import coverage

    measured = coverage.Coverage(data_file=str(data), source=[SOURCE])
    measured.load()
    found = []
    for file in sorted((ROOT / SOURCE).glob("*.py")):
        if not re.search(r"^\s*@kernel\b", file.read_text("utf-8"), re.MULTILINE):
            continue
        _, lines, _, missing, _ = measured.analysis2(str(file))
        reached = 100 * (1 - len(missing) / max(len(lines), 1))
        if reached < FILE_BOUND:
            found.append(f"{file.name} {reached:.0f} %")
    return found


def main() -> int:
    """Run the tests and print the table; 0 if they passed and reached enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--html", type=Path, help="folder for pages that show each line")
    parser.add_argument("tests", nargs="*", default=["tests/backends/cpu"], help="arguments for pytest")
    given = parser.parse_args()
    if importlib.util.find_spec("coverage") is None:
        print("coverage.py is not installed here: pip install coverage", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "coverage"
        tests = _coverage(data, "run", f"--source={SOURCE}", "-m", "pytest", "-p", "no:cacheprovider", *given.tests)
        if given.html is not None:
            _coverage(data, "html", "-q", "-d", str(given.html.resolve()))
        reached = _coverage(data, "report", "-m", f"--fail-under={BOUND}")
        low = _low_files(data)
    if low:
        print(f"under {FILE_BOUND} %:", ", ".join(low))
    return tests or reached or bool(low)


if __name__ == "__main__":
    sys.exit(main())

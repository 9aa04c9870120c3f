"""Everything that only a GPU can show, by one command of under ten minutes:

    python -m tools.cuda_device_suite OUT_FOLDER [--device cuda:0] [--only decode,prefill] [--again]

Prints as it goes and writes OUT_FOLDER/suite.json after every part; parts that stand there as good are not run again
unless `--again` says so. Needs the package's own dependencies, pytest, and torch for the product that prefill is
compared with (`--no-torch` leaves it out). Exit code 1 where a part failed or missed its goal.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tools.cuda_suite import numerics, processes, speed
from tools.cuda_suite.settings import Facts, Say, Settings

#: In the order in which they run: what is quick and decides first.
PARTS: dict[str, Callable[[Settings, Say], Facts]] = {
    "device": numerics.device,
    "golden": numerics.golden,
    "draws": numerics.draws,
    "shapes": numerics.shapes,
    "decode": speed.decode,
    "host": speed.host,
    "overlap": speed.overlap,
    "prefill": speed.prefill,
    "start": processes.start,
    "tests": processes.tests,
    "sanitizer": processes.sanitizer,
}
REPORT = "suite.json"


def main(arguments: list[str] | None = None) -> int:
    """0 where every part that ran is good."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="for models and the report")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", metavar="PART,PART", help=", ".join(PARTS))
    parser.add_argument("--again", action="store_true", help="run parts again that were good")
    parser.add_argument("--no-torch", action="store_true", help="prefill without a product to compare with")
    chosen = parser.parse_args(arguments)
    names = chosen.only.split(",") if chosen.only else list(PARTS)
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    settings = Settings(chosen.folder, chosen.device)
    return run(replace(settings, matmul=0) if chosen.no_torch else settings, names, again=chosen.again)


def run(settings: Settings, names: list[str], *, again: bool = False) -> int:
    """Run parts and keep the report."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    path = settings.folder / REPORT
    report: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for name in names:
        if not again and report.get(name, {}).get("ok"):
            _say(f"{name}: good already")
            continue
        _say(f"== {name}")
        begin = time.perf_counter()
        try:
            facts = PARTS[name](settings, lambda line: _say(f"   {line}"))
        except Exception as error:  # one part must not take the others with it
            traceback.print_exc()
            facts = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        report[name] = {**facts, "seconds": time.perf_counter() - begin}
        _say(f"   {'good' if facts['ok'] else 'NOT GOOD'}, {report[name]['seconds']:.1f} s")
        path.write_text(json.dumps(report, indent=1))
    failed = [name for name in names if not report[name]["ok"]]
    _say(f"not good: {', '.join(failed)}" if failed else "all good")
    return 1 if failed else 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

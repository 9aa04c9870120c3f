"""Perplexity of the real tiny models after quantizing, by method and bits, and whether the expected order holds.

    python -m tools.quality_table --work WORK [--data ../shared/data] [--guide FOLDER] [--json OUT.json]

Expected at each number of bits: source <= GPTQ act-order <= GPTQ < RTN, and AWQ < RTN. Every model is converted by
`edgellm.convert` (all linears of all layers, groups of 32, a zero point for each group, ranges by minmax; GPTQ and AWQ
once for each calibration seed) and measured by `edgellm.evaluate` on held-out text against its source, on the reference
backend. Models this small are noisy: beside perplexity stand KL(source || model), which no lucky error improves, and
the mean of the linears' own relative losses, which is what a quantizer makes small.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
if str(REPOSITORY) not in sys.path:  # when started as a file
    sys.path.insert(0, str(REPOSITORY))

import edgellm  # noqa: E402
from edgellm.convert.calibration import load_calibration  # noqa: E402
from edgellm.model import open_model  # noqa: E402
from tools.quality.layers import Hessians, hessians, losses  # noqa: E402
from tools.quality.sources import MODELS, Source, make_source  # noqa: E402

METHODS: dict[str, dict[str, Any]] = {
    "RTN": {"method": "rtn"},
    "AWQ": {"method": "awq"},
    "GPTQ": {"method": "gptq"},
    "GPTQ act-order": {"method": "gptq", "desc_act": True},
}
#: (better, worse, whether equal will do) at the same number of bits.
ORDERS = (
    ("source", "GPTQ act-order", True),
    ("GPTQ act-order", "GPTQ", True),
    ("GPTQ", "RTN", False),
    ("AWQ", "RTN", False),
)
_SEQUENCES = 128


@dataclass(frozen=True)
class Outcome:
    """One conversion: nats a token on held-out text, the standard error of what they differ by from the source's, KL,
    agreement of the likeliest token, and the mean loss of its linears (None where scales were folded)."""

    seed: int
    nll: float
    error: float
    kl: float
    top1: float
    loss: float | None

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll)


@dataclass(frozen=True)
class Row:
    """A method at a number of bits; the source has 16 and one outcome."""

    model: str
    method: str
    bits: int
    outcomes: tuple[Outcome, ...]

    def mean(self, key: str) -> float:
        """Of one figure over the calibration seeds."""
        return statistics.fmean(getattr(outcome, key) for outcome in self.outcomes)

    def spread(self, key: str) -> float:
        """Standard deviation over the calibration seeds, 0 of one."""
        return statistics.stdev(getattr(o, key) for o in self.outcomes) if len(self.outcomes) > 1 else 0.0


def measure(
    source: Source, methods: Sequence[str], bits: Sequence[int], seeds: Sequence[int], group_size: int, work: Path
) -> list[Row]:
    """All rows of one model."""
    rows = []
    with (
        edgellm.load(source.folder, backend="reference", context=source.length) as llm,
        open_model(source.folder) as opened,
    ):
        calibration = load_calibration(opened, source.calibration, sequences=_SEQUENCES, length=source.length)
        sums = hessians(opened, calibration.token_ids)
        found = edgellm.evaluate(llm, source.held_out, window=source.length)
        rows.append(Row(source.name, "source", 16, (Outcome(0, found.nll_per_token, 0.0, 0.0, 1.0, 0.0),)))
        for width in bits:
            for method in methods:
                outcomes = []
                for seed in seeds if method != "RTN" else seeds[:1]:
                    out = _converted(source, method, width, seed, group_size, work)
                    outcomes.append(_outcome(seed, source, out, llm, None if method == "AWQ" else sums))
                rows.append(Row(source.name, method, width, tuple(outcomes)))
                print(_line(rows[-1]), file=sys.stderr, flush=True)
    return rows


def _converted(source: Source, method: str, bits: int, seed: int, group_size: int, work: Path) -> Path:
    """The folder of one conversion; all its linears have the same bits and groups."""
    out = work / f"{source.name}-{method.replace(' ', '-')}-{bits}-{seed}"
    settings = {**METHODS[method], "bits": bits, "group_size": group_size, "sym": False}
    if method != "RTN":
        settings |= {"calibration": str(source.calibration), "sequences": _SEQUENCES, "seed": seed}
        settings |= {"sequence_length": source.length}
    report = edgellm.convert(source.folder, out, overwrite=True, **settings)
    if any(linear.bits != bits or linear.group_size != group_size for linear in report.linears):
        raise SystemExit(f"{out}: not every linear has {bits} bits in groups of {group_size}")
    return out


def _outcome(seed: int, source: Source, out: Path, llm: edgellm.LLM, sums: Hessians | None) -> Outcome:
    with edgellm.load(out, backend="reference", context=source.length) as quantized:
        found = edgellm.evaluate(quantized, source.held_out, against=llm, window=source.length)
    loss = None
    if sums is not None:
        with open_model(source.folder) as before, open_model(out) as after:
            loss = statistics.fmean(losses(before, after, sums).values())
    other = found.against
    return Outcome(seed, found.nll_per_token, other.nll_difference_error, other.kl_mean, other.top1_agreement, loss)


def broken(rows: Iterable[Row]) -> list[str]:
    """The orders that do not hold, with the figures that say how far each is from holding."""
    by_place = {(row.model, row.bits, row.method): row for row in rows}
    found = []
    for model, bits in dict.fromkeys((model, bits) for model, bits, method in by_place if method != "source"):
        for better, worse, equal in ORDERS:
            a = by_place.get((model, 16 if better == "source" else bits, better))
            b = by_place.get((model, bits, worse))
            if a is None or b is None:
                continue
            difference = a.mean("nll") - b.mean("nll")
            if difference < 0 or (equal and difference == 0):
                continue
            seeds = math.hypot(a.spread("nll"), b.spread("nll"))
            sampling = max(a.mean("error"), b.mean("error"))
            text = f"{model}, {bits} bits: {better} is not below {worse}: {difference:+.5f} nats a token ("
            text += f"seeds spread by {seeds:.5f}, the text's standard error is {sampling:.5f})"
            text += f"; KL {a.mean('kl'):.5f} and {b.mean('kl'):.5f}"
            if None not in (a.outcomes[0].loss, b.outcomes[0].loss):
                text += f"; loss of the linears {a.mean('loss'):.3e} and {b.mean('loss'):.3e}"
            found.append(text)
    return found


def table(rows: Iterable[Row]) -> str:
    """The rows in Markdown."""
    head = "| model | bits | method | perplexity | over seeds | KL | top-1 | loss of linears |"
    return "\n".join([head, "|---|---:|---|---:|---|---:|---:|---:|", *map(_line, rows)])


def _line(row: Row) -> str:
    values = [outcome.perplexity for outcome in row.outcomes]
    seeds = f"{min(values):.4f} to {max(values):.4f}" if len(values) > 1 else ""
    loss = "" if row.outcomes[0].loss is None else f"{row.mean('loss'):.2e}"
    figures = f"{math.exp(row.mean('nll')):.4f} | {seeds} | {row.mean('kl'):.5f} | {row.mean('top1'):.2%} | {loss}"
    return f"| {row.model} | {row.bits} | {row.method} | {figures} |"


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for sources, texts and conversions")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data", help="the story models")
    parser.add_argument("--guide", type=Path, metavar="FOLDER", help="the guide in float16; without, it is left out")
    parser.add_argument("--model", choices=MODELS, action="append", help="may be repeated (all)")
    parser.add_argument("--method", choices=METHODS, action="append", help="may be repeated (all)")
    parser.add_argument("--documents", type=int, default=60, metavar="N", help="held-out stories or conversations (60)")
    parser.add_argument("--bits", type=_numbers, default=[4, 3], metavar="N,..", help="(4,3)")
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2], metavar="N,..", help="of the calibration (0,1,2)")
    parser.add_argument("--group-size", type=int, default=32, metavar="N", help="(32)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file")
    args = parser.parse_args()
    rows: list[Row] = []
    for name in args.model or MODELS:
        if name == "guide" and args.guide is None:
            continue
        source = make_source(name, args.data, args.guide, args.work, args.documents)
        rows += measure(source, args.method or list(METHODS), args.bits, args.seeds, args.group_size, args.work)
    print(table(rows))
    faults = broken(rows)
    print("\n" + ("\n".join(faults) if faults else "Every order holds."))
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""GPTQ of edgellm beside that of GPTQModel and AutoRound: same source, calibration tokens and settings, one judge.

    python -m tools.compare_quantizers MODEL --calibration TEXT --held-out TEXT [--bits 4 3] [--asym] [--act-order] ...

Needs an environment that holds edgellm's requirements and the tools to compare with; those that cannot be imported are
left out and named. Each writes a checkpoint of its own, and edgellm's reference reads them all: perplexity on held-out
rows, and KL divergence and top-1 agreement against the source. Where a tool has two lines, the first has edgellm's
dampening, and the second its own default.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm.convert.calibration import Calibration, load_calibration
from edgellm.convert.held_out import compare_on_rows
from edgellm.convert.job import make_job
from edgellm.convert.pipeline import run_job
from edgellm.convert.recipe import make_recipe
from edgellm.model import open_model


@dataclass(frozen=True)
class Settings:
    """What every tool is asked for."""

    bits: int
    group_size: int
    sym: bool
    desc_act: bool
    damp_percent: float


#: Writes a checkpoint: (source, output, calibration token ids int32 [N, L], settings).
Quantize = Callable[[Path, Path, np.ndarray, Settings], None]


def by_edgellm(method: str, **options: object) -> Quantize:
    """edgellm's own, by one of its methods."""

    def quantize(source: Path, out: Path, token_ids: np.ndarray, settings: Settings) -> None:
        asked = {**vars(settings), **options, "method": method}
        if method != "gptq":
            asked = {key: asked[key] for key in ("method", "bits", "group_size", "sym")}
        with open_model(source) as model:
            job = make_job(model, make_recipe(asked))
            calibration = None if method == "rtn" else Calibration(token_ids, "shared")
            run_job(job, out, calibration=calibration, source_digest="")

    return quantize


def by_gptqmodel(**options: object) -> Quantize:
    """GPTQModel's GPTQ without reordering of its own (`act_group_aware`), with edgellm's dampening unless `options`."""

    def quantize(source: Path, out: Path, token_ids: np.ndarray, settings: Settings) -> None:
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # on two processors it counts one, and wants two
        import torch
        from gptqmodel import GPTQModel, QuantizeConfig

        asked = {**vars(settings), "act_group_aware": False, **options}
        config = QuantizeConfig(**{key: value for key, value in asked.items() if value is not None})
        model = GPTQModel.load(str(source), config, dtype=torch.float32, device="cpu")
        rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in token_ids]
        model.quantize(rows, batch_size=1)
        model.save(str(out))

    return quantize


def by_autoround(iterations: int) -> Quantize:
    """AutoRound: rounding to nearest with 0 iterations, else rounding learned by that many steps of signed descent."""

    def quantize(source: Path, out: Path, token_ids: np.ndarray, settings: Settings) -> None:
        import torch
        from auto_round import AutoRound
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        rows = [{"input_ids": torch.tensor(row[None].astype(np.int64))} for row in token_ids]
        found = AutoRound(
            model, AutoTokenizer.from_pretrained(source), bits=settings.bits, group_size=settings.group_size,
            sym=settings.sym, iters=iterations, nsamples=len(rows), seqlen=token_ids.shape[1], dataset=rows,
            device_map="cpu", amp=False, enable_torch_compile=False,
        )  # fmt: skip
        found.quantize_and_save(str(out), format="auto_gptq")

    return quantize


def quantizers(settings: Settings) -> Iterator[tuple[str, Quantize]]:
    """(name, how) of all that can run here, edgellm's GPTQ first."""
    yield "edgellm gptq", by_edgellm("gptq")
    yield "edgellm gptq, mse grids", by_edgellm("gptq", search="mse")
    yield "edgellm rtn", by_edgellm("rtn")
    if importlib.util.find_spec("gptqmodel"):
        yield "GPTQModel gptq", by_gptqmodel()
        yield "GPTQModel gptq, its dampening", by_gptqmodel(damp_percent=None)
        if not settings.desc_act:
            yield "GPTQModel gptq, its defaults", by_gptqmodel(damp_percent=None, act_group_aware=None)
    else:
        print("GPTQModel is not installed here")
    if not importlib.util.find_spec("auto_round"):
        print("AutoRound is not installed here")
    elif not settings.desc_act:
        yield "AutoRound, no iterations", by_autoround(0)
        yield "AutoRound, 200 iterations", by_autoround(200)


def judge(folder: Path, source: Path, rows: np.ndarray) -> dict[str, float]:
    """Perplexity, KL and top-1 agreement of a checkpoint on rows int32 [N, L]."""
    with open_model(folder) as model, open_model(source) as original:
        found = compare_on_rows(model, original, rows)
    return {
        "perplexity": found.perplexity,
        "kl": found.against.kl_mean,
        "top1": found.against.top1_agreement,
        "source_perplexity": found.against.perplexity,
    }


def compare(
    source: Path, calibration: np.ndarray, held_out: np.ndarray, settings: Settings, without: list[str]
) -> list[dict[str, object]]:
    """One line of results a quantizer, printed as it comes; names that begin with one of `without` are left out."""
    lines: list[dict[str, object]] = []
    for name, quantize in quantizers(settings):
        if name.startswith(tuple(without)):
            continue
        with tempfile.TemporaryDirectory(prefix="compare-") as folder:
            out = Path(folder) / "out"
            start = time.perf_counter()
            try:
                quantize(source, out, calibration, settings)
                seconds = time.perf_counter() - start
                written = next((path.parent for path in sorted(out.rglob("config.json"))), out)
                line = {"name": name, **vars(settings), "seconds": seconds, **judge(written, source, held_out)}
            except Exception as error:  # another tool's, of any kind: the rest is still worth having
                print(f"{name:32} failed: {type(error).__name__}: {error}", flush=True)
                continue
        lines.append(line)
        relative = line["perplexity"] / lines[0]["perplexity"] - 1
        print(
            f"{name:32} perplexity {line['perplexity']:8.4f} ({relative:+.2%})  KL {line['kl']:.5f}"
            f"  top-1 {line['top1']:.2%}  {seconds:6.1f} s",
            flush=True,
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="text, JSONL or chat JSONL")
    parser.add_argument("--held-out", type=Path, required=True, help="another text")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--rows", type=int, default=96, help="of held-out text")
    parser.add_argument("--length", type=int, default=256, help="tokens a sequence and a row")
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--damp-percent", type=float, default=0.01)
    parser.add_argument("--asym", action="store_true")
    parser.add_argument("--act-order", action="store_true")
    parser.add_argument("--without", nargs="+", default=[], help="names, or beginnings of names, to leave out")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    with open_model(options.model) as model:
        sizes = {"length": options.length}
        calibration = load_calibration(model, options.calibration, sequences=options.sequences, **sizes).token_ids
        held_out = load_calibration(model, options.held_out, sequences=options.rows, **sizes).token_ids
    print(f"{options.model}: calibration {calibration.shape}, held out {held_out.shape}")
    lines = []
    for bits in options.bits:
        settings = Settings(bits, options.group_size, not options.asym, options.act_order, options.damp_percent)
        print(settings)
        lines += compare(options.model, calibration, held_out, settings, options.without)
    if lines:
        print(f"the source: perplexity {lines[0]['source_perplexity']:.4f}")
    if options.json is not None:
        options.json.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

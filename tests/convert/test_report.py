"""The report: JSON and back, tables, plots, and quality with one block in memory at a time."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest

import edgellm
from edgellm.cli.report_table import report_tables
from edgellm.convert.evaluate import Evaluation
from edgellm.convert.held_out import compare_on_rows
from edgellm.convert.plots import plot_errors, plot_size_quality
from edgellm.convert.prune import prune
from edgellm.convert.prune_recipe import PruneRecipe
from edgellm.convert.report import LinearCost, Report, Stage, layer_errors, pruned_costs, read_report, write_report
from edgellm.errors import ModelError, OutputError, UsageError
from edgellm.model import open_model
from tests.api.models import write_model

IDS = np.random.default_rng(0).integers(0, 250, (3, 20)).astype(np.int32)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A model, the same pruned, and the report of it."""
    folder = tmp_path_factory.mktemp("report")
    source, out = write_model(folder / "source[bold]"), folder / "out"
    with open_model(source) as opened:
        pruning = prune(opened, PruneRecipe(ffn=0.5, kv_groups=0.5), IDS, out)
        with open_model(out) as made:
            quality = compare_on_rows(made, opened, IDS, nbytes=57)
    report = Report(
        source=str(source),
        output=str(out),
        method="prune",
        source_bytes=pruning.nbytes_before,
        output_bytes=pruning.nbytes,
        seconds=1.5,
        peak_bytes=10**8,
        settings={"ffn": 0.5},
        linears=pruned_costs(pruning),
        stages=(Stage("pruned", pruning.nbytes, quality),),
        held_out="held-out.txt",
        pruning=pruning.as_dict(),
        notes=("a note",),
    )
    return source, out, report


@pytest.mark.parametrize("spilled", [False, True])
def test_blocks_find_what_loaded_models_find(case, tmp_path, spilled):
    source, out, report = case
    seen = []
    with open_model(source) as opened, open_model(out) as made:
        scratch = tmp_path if spilled else None
        found = compare_on_rows(made, opened, IDS, nbytes=57, scratch=scratch, done=seen.append)
    assert sum(seen) == 4 * IDS.size
    assert list(tmp_path.iterdir()) == []
    assert found.as_dict()["against"]["kl_mean"] == report.quality.against.kl_mean > 0
    with edgellm.load(out, backend="reference", context=64) as a, edgellm.load(source, backend="reference") as b:
        nll, other = (np.mean([llm.score(row.tolist()).nll_per_token for row in IDS]) for llm in (a, b))
    assert found.nll_per_token == pytest.approx(nll, rel=1e-5)
    assert found.against.nll_per_token == pytest.approx(other, rel=1e-5)
    with open_model(source) as opened:
        alone = compare_on_rows(opened, None, IDS, context=4)
        assert (alone.against, alone.tokens, alone.stride) == (None, 3 * 16, 16)
        with pytest.raises(UsageError, match="too short"):
            compare_on_rows(opened, None, IDS, context=20)


def test_a_report_is_written_and_read(case, tmp_path):
    report = case[2]
    path = write_report(report, tmp_path)
    again = read_report(tmp_path)
    assert again == read_report(path)
    assert again.as_bytes() == path.read_bytes() == report.as_bytes()
    assert again.quality == report.quality
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
    with pytest.raises(OutputError):
        write_report(report, tmp_path / "none")
    path.write_text('{"version": 1, "other": 2}')
    with pytest.raises(ModelError, match="not a report"):
        read_report(path)
    path.write_text("{}")
    with pytest.raises(ModelError, match="another version"):
        read_report(path)


def test_infinity_is_no_json_and_is_left_out():
    quality = Evaluation(1, 0, 8, 7, 800.0, float("nan"), float("inf"), 0, float("inf"), 0.0, float("inf"))
    report = Report("a", "b", "rtn", 2, 1, stages=(Stage("quantized", 1, quality),))
    assert json.loads(report.as_bytes())["stages"][0]["quality"]["perplexity"] is None


def test_errors_by_layer():
    linears = (
        LinearCost("model.layers.0.mlp.down_proj", 0.5, bits=4),
        LinearCost("model.layers.10.self_attn.q_proj", 0.25),
        LinearCost("lm_head", 1.0),
    )
    assert layer_errors(linears) == {0: {"down_proj": 0.5}, 10: {"q_proj": 0.25}}
    assert linears[2].layer is None


def test_the_table_says_it(case):
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=200).print(report_tables(case[2]))
    text = out.getvalue()
    for words in ("source[bold]", "prune", "down_proj", "KL 99 %", "pruned", "source", "note: a note", "held-out.txt"):
        assert words in text


def test_plots_are_drawn_where_matplotlib_is(case, tmp_path):
    pytest.importorskip("matplotlib")
    for path in (plot_errors(case[2], tmp_path / "a.png"), plot_size_quality([case[2]], tmp_path / "b.svg")):
        assert path.stat().st_size > 1000
    assert "matplotlib.pyplot" not in sys.modules
    with pytest.raises(OutputError):
        plot_errors(case[2], tmp_path / "c.unknown")


def test_plots_without_matplotlib_say_what_to_install(case, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"edgellm\[plot\]"):
        plot_errors(case[2], tmp_path / "a.png")
    with pytest.raises(UsageError, match="no errors by layer"):
        plot_errors(Report("a", "b", "rtn", 1, 1), tmp_path / "a.png")
    with pytest.raises(UsageError, match="measured quality"):
        plot_size_quality([], tmp_path / "a.png")

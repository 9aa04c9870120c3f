"""`edgellm convert --prune`: its options, the report on the screen, the plot, and what a dry run foretells."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from edgellm.cli.main import main
from edgellm.cli.pruning import layers, pruning_of, share_or_count
from tests.api.models import write_model

SMALL = ["--sequences", "4", "--sequence-length", "32"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "source", intermediate_size=64, num_hidden_layers=3)


@pytest.mark.parametrize(("text", "found"), [("0.25", 0.25), ("25%", 0.25), ("6_144", 6144), ("2", 2)])
def test_shares_and_counts(text: str, found: float) -> None:
    assert share_or_count(text) == found
    assert type(share_or_count(text)) is type(found)


def test_layers() -> None:
    assert (layers("3"), layers("3,"), layers("0,2")) == (3, (3,), (0, 2))


def test_options_count_more_than_a_file() -> None:
    none = {"prune": None, "prune_ffn": None, "prune_kv_groups": None, "prune_layers": None, "refit": None}
    args = argparse.Namespace(**none, prune_vocabulary=[])
    file = {"prune": {"ffn": 0.5, "layers": 1}}
    assert pruning_of(args, {}) is None
    assert pruning_of(args, file) == file["prune"]
    args.prune_ffn, args.refit = 48, "layer"
    assert pruning_of(args, file) == {"ffn": 48, "layers": 1, "refit": "layer"}
    assert pruning_of(argparse.Namespace(**{**none, "prune": True}, prune_vocabulary=[]), {}) is True


def test_a_pruned_model_its_tables_and_its_plot(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("words that nobody calibrated on " * 20)
    command = ["convert", str(source), str(tmp_path / "out"), *SMALL, "--prune-ffn", "0.5", "--prune-layers", "0,"]
    command += ["--refit", "layer", "--bits", "4", "--group-size", "16", "--held-out", str(held_out)]
    assert main([*command, "--plot", str(tmp_path / "plot.none")]) == 2
    assert "no such kind of picture" in capsys.readouterr().err
    assert main([*command, "--plot", str(tmp_path / "plot.svg")]) == 0
    shown = capsys.readouterr()
    for words in ("prune + gptq", "bits a weight", "peak memory", "quantized", "cut down_proj", "KL 99 %", "top-1"):
        assert words in shown.out
    assert "plot.svg" in shown.err
    assert (tmp_path / "plot.svg").stat().st_size > 1000
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 2


def test_prune_alone_as_the_guide_has_it(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["convert", str(source), str(tmp_path / "out"), "--prune", *SMALL]) == 0
    assert "--bits 4" in capsys.readouterr().err
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    both = ["convert", str(source), str(tmp_path / "both"), "--prune", "--bits", "4", "--group-size", "16"]
    assert main([*both, *SMALL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "prune + gptq"
    assert main(["convert", str(source), str(tmp_path / "no"), "--bits", "16"]) == 2
    assert "nothing would be pruned" in capsys.readouterr().err


def test_a_dry_run_foretells_what_is_written(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["convert", str(source), *SMALL, "--prune-ffn", "32", "--prune-kv-groups", "1", "--prune-layers", "1"]
    for extra in ([], ["--bits", "4", "--group-size", "16"]):
        out = tmp_path / f"out{len(extra)}"
        assert main([*command, *extra, "--dry-run", "--json"]) == 0
        foretold = json.loads(capsys.readouterr().out)
        assert not out.exists()
        assert main([*command[:2], str(out), *command[2:], *extra, "--json"]) == 0
        written = json.loads(capsys.readouterr().out)
        assert foretold["output_bytes"] == written["output_bytes"]
        assert foretold["calibration_tokens"] == 128
        assert foretold["seconds"] > 0

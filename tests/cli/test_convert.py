"""`edgellm convert`: sizes, dry runs, targets, a whole conversion, and what it refuses."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

import edgellm
from edgellm.cli.convert import duration, size_of
from edgellm.cli.main import main
from tests.api.models import write_model

SMALL = ["--group-size", "16", "--sequences", "4", "--sequence-length", "32"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "source")


@pytest.mark.parametrize(
    ("text", "nbytes"), [("6GB", 6 * 10**9), ("1.5g", 1_500_000_000), ("512MiB", 512 << 20), ("4096", 4096)]
)
def test_sizes(text: str, nbytes: int) -> None:
    assert size_of(text) == nbytes


@pytest.mark.parametrize("text", ["", "six", "6 apples", "-1GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        size_of(text)


def test_durations() -> None:
    assert [duration(seconds) for seconds in (45, 300, 8400)] == ["45 s", "5 min", "2 h 20 min"]


def test_a_conversion_and_the_model_it_makes(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("some words that nobody calibrated on " * 20)
    command = ["convert", str(source), str(out), *SMALL, "--bits", "4", "--method", "gptq", "--json"]
    assert main([*command, "--held-out", str(held_out)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["linears"]) == 14
    assert facts["output_bytes"] < facts["source_bytes"]
    report = json.loads((out / "report.json").read_text())
    assert [entry["name"] for entry in report["linears"]] == [entry["name"] for entry in facts["linears"]]
    assert report["stages"][0]["quality"]["against"]["kl_mean"] > 0
    with edgellm.load(out, backend="reference") as llm:
        assert llm.info["quantization"]["bits"] == 4
        assert llm.generate("abc", max_tokens=3).usage.completion_tokens > 0
    assert main(["convert", str(source), str(out), *SMALL]) == 73
    assert "is there already" in capsys.readouterr().err


def test_the_function_has_the_name_of_its_room(source: Path, tmp_path: Path) -> None:
    import edgellm.convert.recipe  # a module of the room must not hide the function

    result = edgellm.convert(
        source, tmp_path / "out", average_bits=5.5, group_size=16, sequences=4, sequence_length=32
    )  # fmt: skip
    assert result.bits_per_weight <= 5.5
    assert len({linear.bits for linear in result.linears}) > 1


def test_a_dry_run_writes_nothing(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(["convert", str(source), "--dry-run", *SMALL, "--target", "laptop-8gb", "--bits", "4"]) == 0
    shown = capsys.readouterr()
    assert "about" in shown.out
    assert "laptop-8gb has 8 GB" in shown.err
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["convert", "--target", "list"]) == 0
    assert "jetson-orin-nano-8gb" in capsys.readouterr().out


def test_what_is_missing_or_does_not_fit(source: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["convert"]) == 2
    assert main(["convert", str(source)]) == 2
    assert main(["convert", str(source), "x", "--method", "rtn", "--calibration", "text.txt"]) == 2
    assert main(["convert", str(source), "x", "--max-ram", "1kB"]) == 75
    assert "max_ram" in capsys.readouterr().err


def test_a_bundle_of_a_model_as_it_is(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bundle = tmp_path / "model.safetensors"
    assert main(["convert", str(source), "--bundle", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"bundle": str(bundle), "bytes": bundle.stat().st_size}
    with edgellm.load(bundle, backend="reference") as one, edgellm.load(source, backend="reference") as other:
        assert one.generate("abc", max_tokens=4).text == other.generate("abc", max_tokens=4).text
    assert main(["convert", str(source), "--bundle", str(bundle)]) == 73
    assert main(["convert", str(source), "--bundle", str(bundle), "--overwrite"]) == 0
    assert main(["convert", str(source), "--bundle", str(tmp_path / "model.bin")]) == 2
    assert "ends in .safetensors" in capsys.readouterr().err


def test_a_bundle_of_what_is_written(source: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "small.safetensors"
    command = ["convert", str(source), "--bundle", str(bundle), "--method", "rtn", "--group-size", "16"]
    assert main(command) == 2  # settings ask for a conversion, which needs an OUT
    assert not bundle.exists()
    assert main([*command, str(tmp_path / "out")]) == 0
    assert edgellm.inspect(bundle)["quantization"]["bits"] == 4
    assert bundle.stat().st_size > (tmp_path / "out" / "model.safetensors").stat().st_size

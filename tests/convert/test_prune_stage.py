"""Pruning inside a conversion: what it writes, that a run goes on after it, and what the report says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgellm
from edgellm.convert import prune_stage
from edgellm.convert.output import StagedOutput, staging_folder
from edgellm.convert.prune import prune
from edgellm.convert.prune_recipe import PruneRecipe
from edgellm.convert.prune_stage import PRUNE_FILE
from edgellm.convert.report import read_report
from edgellm.errors import InputError, OutOfMemoryError, OutputError
from edgellm.model import open_model
from tests.api.models import write_model
from tests.convert.converting import contents, golden, tokens

CALIBRATION = {"sequences": 4, "sequence_length": 32}
PRUNE = {"ffn": 0.5, "kv_groups": 1, "layers": 1}
QUANTIZE = {"bits": 4, "group_size": 16}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("stage") / "source", intermediate_size=64, num_hidden_layers=3)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text("Some words that nobody calibrated on, and some more. " * 20)
    return path


@pytest.fixture(scope="module")
def whole(source: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    edgellm.convert(source, out, prune=PRUNE, held_out=text, **QUANTIZE, **CALIBRATION)
    return out


def weights(folder: Path) -> dict[str, bytes]:
    """All files but the report, which tells how long a run took."""
    return {name: data for name, data in contents(folder).items() if name != "report.json"}


class Killed(Exception):
    """Stands for the end of a process."""


def test_pruned_and_quantized(source: Path, whole: Path) -> None:
    config = json.loads((whole / "config.json").read_text())
    assert [config[key] for key in ("num_hidden_layers", "intermediate_size", "num_key_value_heads")] == [2, 32, 1]
    assert config["quantization_config"]["bits"] == 4
    assert not staging_folder(whole).exists()
    report = read_report(whole)
    assert (report.method, [stage.label for stage in report.stages]) == ("prune + gptq", ["pruned", "quantized"])
    assert all(stage.quality.against.kl_mean > 0 and stage.quality.bytes > 0 for stage in report.stages)
    assert report.source_bytes > report.stages[0].nbytes > report.output_bytes
    cut = [linear for linear in report.linears if linear.bits is None]
    assert len(cut) == 4
    assert all(linear.error < linear.error_without for linear in cut)
    assert {linear.layer for linear in report.linears} == {0, 1}
    assert len(report.linears) == 4 + 14
    assert report.pruning["removed_layers"]
    assert report.settings["prune"]["ffn"] == 0.5
    assert report.peak_bytes > 0
    with edgellm.load(whole, backend="reference") as llm:
        assert llm.generate("abc", max_tokens=3).usage.completion_tokens > 0


def test_pruned_alone_is_what_prune_writes(source: Path, tmp_path: Path) -> None:
    report = edgellm.convert(source, tmp_path / "out", prune={"ffn": 0.5}, **CALIBRATION)
    assert (report.method, report.bits_per_weight, report.stages) == ("prune", None, ())
    assert read_report(tmp_path / "out").pruning["layers"][0]["channels"] == 32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    from edgellm.convert.calibration import load_calibration

    with open_model(source) as opened:
        ids = load_calibration(opened, sequences=4, length=32).token_ids
        prune(opened, PruneRecipe(ffn=0.5), ids, tmp_path / "direct")
    assert weights(tmp_path / "out") == weights(tmp_path / "direct")


def interrupted(monkeypatch: pytest.MonkeyPatch, where: object, name: str, source: Path, out: Path, **settings) -> None:
    """A run that ends where `where.name` is called."""

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(where, name, killed)
        with pytest.raises(Killed):
            edgellm.convert(source, out, prune=PRUNE, **QUANTIZE, **CALIBRATION, **settings)


@pytest.mark.parametrize(("where", "name"), [(StagedOutput, "finish"), (StagedOutput, "write")])
def test_what_was_pruned_is_not_pruned_again(
    where: type, name: str, source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    interrupted(monkeypatch, where, name, source, out)
    with pytest.raises(OutputError, match="an unfinished conversion"):
        edgellm.convert(source, out, prune=PRUNE, **QUANTIZE, **CALIBRATION)
    monkeypatch.setattr(prune_stage, "prune", lambda *_, **__: pytest.fail("pruned again"))
    edgellm.convert(source, out, prune=PRUNE, resume=True, **QUANTIZE, **CALIBRATION)
    assert weights(out) == weights(whole)
    assert len([linear for linear in read_report(out).linears if linear.bits is None]) == 4
    assert not staging_folder(out).exists()


def test_a_killed_or_damaged_pruning_is_done_anew(
    source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    interrupted(monkeypatch, prune_stage, "_folder_digest", source, out)  # written, and not yet noted
    assert (staging_folder(out) / "pruned").exists()
    interrupted(monkeypatch, StagedOutput, "finish", source, out, resume=True)
    damaged = staging_folder(out) / "pruned" / "model.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    (staging_folder(out) / ".pruned.left").mkdir()
    edgellm.convert(source, out, prune=PRUNE, resume=True, **QUANTIZE, **CALIBRATION)
    assert weights(out) == weights(whole)


def test_other_settings_do_not_go_on(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    interrupted(monkeypatch, StagedOutput, "finish", source, out)
    other = {**PRUNE, "refit": "layer"}
    with pytest.raises(OutputError, match="another source or recipe"):
        edgellm.convert(source, out, prune=other, resume=True, **QUANTIZE, **CALIBRATION)
    with pytest.raises(OutputError, match="an unfinished conversion"):
        edgellm.convert(source, out, method="rtn")
    edgellm.convert(source, out, prune=other, resume=True, overwrite=True, **QUANTIZE, **CALIBRATION)
    assert read_report(out).settings["prune"]["refit"] == "layer"
    (staging_folder(tmp_path / "plain")).mkdir()
    (staging_folder(tmp_path / "plain") / PRUNE_FILE).write_text("{}")
    edgellm.convert(source, tmp_path / "plain", method="rtn", overwrite=True)
    assert not staging_folder(tmp_path / "plain").exists()


def test_a_cut_vocabulary_is_judged_among_the_ids_that_stay(source: Path, text: Path, tmp_path: Path) -> None:
    report = edgellm.convert(source, tmp_path / "out", prune={"vocabulary": [str(text)]}, held_out=text)
    found = report.stages[0].quality
    assert found.against.kl_mean == pytest.approx(0, abs=1e-6)
    assert found.against.top1_agreement == 1.0
    assert found.perplexity == pytest.approx(found.against.perplexity, rel=1e-5)
    assert report.pruning["vocabulary"]["kept"] < report.pruning["vocabulary"]["of"] == 264
    assert "kept_ids" not in json.dumps(report.as_dict())
    assert any("numbered anew" in note for note in report.notes)
    both = edgellm.convert(
        source, tmp_path / "both", prune={"vocabulary": str(text), "layers": 1}, method="rtn", group_size=16,
        held_out=text, **CALIBRATION,
    )  # fmt: skip
    assert both.stages[1].quality.against.kl_mean > 0
    with open_model(tmp_path / "both") as model:
        assert (model.config.num_hidden_layers, model.config.vocab_size) == (2, report.pruning["vocabulary"]["kept"])


def test_norms_behind_the_blocks_are_told(tmp_path: Path) -> None:
    ids = tokens(2, 16).token_ids
    for name, refit, told in (("gemma3", "source", True), ("gemma3", "layer", False), ("llama-mha", "source", False)):
        with open_model(golden(name)) as opened:
            report = prune(opened, PruneRecipe(ffn=0.5, ffn_multiple=8, refit=refit), ids, tmp_path / f"{name}-{refit}")
        assert any('refit "layer" in place of "source"' in note for note in report.notes) == told


def test_nothing_is_begun_where_it_cannot_be_done(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError, match="pruning needs"):
        edgellm.convert(source, tmp_path / "out", prune=PRUNE, max_ram=1000, **CALIBRATION)
    with pytest.raises(InputError, match=r"none\.txt"):
        edgellm.convert(source, tmp_path / "out", prune={"vocabulary": str(tmp_path / "none.txt")})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        edgellm.convert(source, tmp_path / "taken", prune=PRUNE, **CALIBRATION)
    with pytest.raises(OutputError, match="is the source itself"):
        edgellm.convert(source, source, prune=PRUNE, overwrite=True, **CALIBRATION)
    assert (tmp_path / "taken" / "file").read_text() == "mine"


def test_a_share_that_rounds_to_nothing_is_told(source: Path, tmp_path: Path) -> None:
    report = edgellm.convert(source, tmp_path / "out", prune=True, **CALIBRATION)
    assert any("no MLP channel went" in note for note in report.notes)

"""Whole conversions of tiny models: what is written is what was computed, in every method and for odd files."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from edgellm.convert.job import make_job
from edgellm.convert.output import StagedOutput, staging_folder
from edgellm.convert.recipe import make_recipe
from edgellm.convert.rtn import quantize_rtn
from edgellm.convert.scheme import Scheme
from edgellm.convert.state import locked
from edgellm.errors import OutputError, UsageError
from edgellm.formats import QuantizedTensor
from edgellm.model import open_model
from tests.convert.converting import contents, convert, golden, logits, tokens


def test_rounding_writes_what_the_quantizer_gives_and_copies_the_rest(tmp_path: Path) -> None:
    source = golden("llama-bias")
    result = convert(source, tmp_path / "out", method="rtn", group_size=16)
    with open_model(source) as before, open_model(tmp_path / "out") as after:
        for name, spec in before.weights.program.weights.items():
            if name == "lm_head":
                continue
            if spec.kind != "linear":
                read = "vector" if spec.kind == "vector" else "embedding"
                arguments = (name,) if spec.kind == "vector" else ()
                assert np.array_equal(*(getattr(m.weights, read)(*arguments) for m in (before, after)))
                continue
            found = after.weights.linear(name)
            expected = quantize_rtn(before.weights.linear(name), Scheme(group_size=16))
            assert isinstance(found, QuantizedTensor)
            assert np.array_equal(found.codes, expected.codes)
            assert np.array_equal(found.scales, expected.scales)
            assert np.array_equal(after.weights.bias(name), before.weights.bias(name))
        assert after.notes == before.notes
    assert {linear.bits for linear in result.linears} == {4}
    assert result.bits_per_weight == 4 + 20 / 16
    assert not staging_folder(tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["llama-gqa-head-dim", "gemma3", "olmo2", "phi3"])
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "gptq"},
        {"method": "gptq", "desc_act": True, "sym": False},
        {"method": "awq"},
        {"method": "awq", "bits": 8},
    ],
)
def test_calibrated_outputs_are_near_the_source(name: str, settings: dict, tmp_path: Path) -> None:
    source, ids = golden(name), tokens().token_ids
    convert(source, tmp_path / "out", group_size=16, **settings)
    convert(source, tmp_path / "coarse", method="rtn", group_size=16, bits=2)
    expected = logits(source, ids)
    errors = [np.linalg.norm(logits(tmp_path / out, ids) - expected) for out in ("out", "coarse")]
    assert errors[0] < 0.7 * errors[1]
    stated = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert stated["quant_method"] == ("awq" if settings == {"method": "awq"} else "gptq")


def test_later_linears_see_the_quantized_ones_before_them(tmp_path: Path) -> None:
    source = golden("llama-mha")
    convert(source, tmp_path / "true", group_size=16, bits=2)
    convert(source, tmp_path / "not", group_size=16, bits=2, true_sequential=False)
    with open_model(tmp_path / "true") as one, open_model(tmp_path / "not") as other:
        q, down = "layers.0.self_attn.q_proj", "layers.0.mlp.down_proj"
        assert np.array_equal(one.weights.linear(q).codes, other.weights.linear(q).codes)
        assert not np.array_equal(one.weights.linear(down).codes, other.weights.linear(down).codes)


def test_overrides_and_a_quantized_output_layer(tmp_path: Path) -> None:
    out = tmp_path / "out"
    overrides = {
        r"model\.layers\.0\..*down_proj": {"bits": 8},
        "model.layers.1.self_attn.v_proj": {"skip": True},
    }
    convert(golden("llama-tied"), out, method="gptq", group_size=16, overrides=overrides, lm_head_bits=8)
    stated = json.loads((out / "config.json").read_text())
    with open_model(out) as model:
        weights = model.weights
        assert weights.linear("layers.0.mlp.down_proj").bits == 8
        assert weights.linear("layers.1.mlp.down_proj").bits == 4
        assert isinstance(weights.linear("layers.1.self_attn.v_proj"), np.ndarray)
        assert weights.linear("lm_head").bits == 8
    assert stated["tie_word_embeddings"] is False
    assert stated["quantization_config"]["lm_head"] is True
    dynamic = stated["quantization_config"]["dynamic"]
    assert dynamic[r"+:^model\.layers\.0\.mlp\.down_proj$"] == {"bits": 8}
    assert r"-:^model\.layers\.1\.self_attn\.v_proj$" in dynamic


def test_a_quantized_source_and_shards(tmp_path: Path) -> None:
    convert(golden("qwen3"), tmp_path / "eight", method="rtn", bits=8, group_size=16)
    convert(
        tmp_path / "eight", tmp_path / "four", method="rtn", group_size=16, shard_bytes=1 << 20,
        overrides={"model.layers.0.mlp.up_proj": {"skip": True}},
    )  # fmt: skip
    ids = tokens().token_ids
    with open_model(tmp_path / "four") as model:
        assert model.quantization.bits == 4
        assert model.checkpoint.info("model.layers.0.mlp.up_proj.weight").dtype == "F16"
    assert np.isfinite(logits(tmp_path / "four", ids)).all()


def test_a_group_size_that_does_not_divide_is_lowered_for_all(tmp_path: Path) -> None:
    result = convert(golden("llama-mha"), tmp_path / "out", method="rtn")
    assert {linear.group_size for linear in result.linears} == {16}
    assert any("group_size 16 in place of 128" in note for note in result.notes)


def test_places_that_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, data in contents(golden("llama-mha")).items():
        (source / name).write_bytes(data)
    before = contents(source)
    with pytest.raises(OutputError, match="the source itself"):
        convert(source, source, method="rtn", overwrite=True)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="is there already"):
        convert(source, taken, method="rtn")
    assert contents(taken) == {"mine.txt": b"keep"}
    with pytest.raises(OutputError):
        convert(source, taken / "mine.txt" / "below", method="rtn")
    convert(source, taken, method="rtn", overwrite=True)
    assert "mine.txt" not in contents(taken)
    assert contents(source) == before


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    convert(golden("llama-mha"), out, method="rtn", bits=8)
    before = contents(out)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        convert(golden("llama-mha"), out, method="rtn", overwrite=True)
    monkeypatch.undo()
    assert contents(out) == before
    convert(golden("llama-mha"), out, method="rtn", overwrite=True)
    assert contents(out) != before


def test_two_at_once_and_an_unfinished_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked(staging_folder(out)), pytest.raises(OutputError, match=f"process {os.getpid()}"):
        convert(golden("llama-mha"), out, method="rtn")
    (staging_folder(out) / "convert-state.json").write_text("{}")
    with pytest.raises(OutputError, match="unfinished"):
        convert(golden("llama-mha"), out, method="rtn")
    convert(golden("llama-mha"), out, method="rtn", overwrite=True)
    assert out.exists()


def test_errors_of_a_recipe_that_does_not_fit(tmp_path: Path) -> None:
    with open_model(golden("llama-mha")) as model:
        with pytest.raises(UsageError, match="no linear of this model"):
            make_job(model, make_recipe({"overrides": {"model.layers.9.mlp.up_proj": {"bits": 8}}}))
        with pytest.raises(UsageError, match="no linear is left"):
            make_job(model, make_recipe({"overrides": {"model.*": {"skip": True}}}))


def test_tensors_must_be_what_was_announced(tmp_path: Path) -> None:
    with open_model(golden("llama-mha")) as model:
        job = make_job(model, make_recipe({"method": "rtn"}))
        output = StagedOutput(tmp_path / "out", job.sources, max_shard_bytes=1 << 30)
        name = next(iter(job.sources))
        with pytest.raises(UsageError, match="not what was announced"):
            output.write(name, np.zeros(3, np.float32))
        output.close()

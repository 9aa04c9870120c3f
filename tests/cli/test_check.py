from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def states(done) -> dict[str, str]:
    return {check["name"]: check["state"] for check in json.loads(done.out)["checks"]}


def test_a_whole_model(cli, tiny):
    done = cli("check", tiny)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "whole"
    assert "8 greedy tokens with cpu" in done.out
    assert "8 greedy tokens with reference" in cli("check", tiny, "--backend", "reference").out


def test_json_and_progress_on_stderr(cli, bare):
    done = cli("check", bare, "--json")
    assert states(done) == {
        "files": "ok",
        "stored": "ok",
        "weights": "skipped",
        "tokenizer": "ok",
        "template": "skipped",
        "smoke": "ok",
    }
    assert "tokenizer" in done.err
    assert cli("check", bare, "--json", "-q").err == ""


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_named(cli, copy, value):
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, copy / "model.safetensors")
    done = cli("check", copy)
    assert done.code == 65
    assert "model.layers.1.mlp.up_proj.weight: 1 NaN" in done.out or "0 NaN, 1 infinite" in done.out
    assert done.out.splitlines()[-1] == "damaged"
    found = states(cli("check", copy, "--json"))
    assert (found["stored"], found["smoke"], found["tokenizer"]) == ("failed", "failed", "ok")


def test_values_of_both_signs_that_overflow_a_sum_are_numbers(cli, copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][:] = np.finfo(np.float32).max
    save_file(tensors, copy / "model.safetensors")
    assert states(cli("check", copy, "--json"))["stored"] == "ok"


def test_a_shape_that_the_config_does_not_say(cli, copy):
    config = json.loads((copy / "config.json").read_text()) | {"intermediate_size": 96}
    (copy / "config.json").write_text(json.dumps(config))
    done = cli("check", copy)
    assert done.code == 65
    assert "mlp" in done.out
    assert "shape differs" in done.out


def test_a_file_cut_short(cli, copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = cli("check", copy)
    assert done.code == 65
    assert "model.safetensors" in done.out


def test_a_template_that_fails(cli, copy):
    config = json.loads((copy / "tokenizer_config.json").read_text()) | {"chat_template": "{{ messages[9].x }}"}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    assert states(cli("check", copy, "--json"))["template"] == "failed"


def test_nothing_there(cli, tmp_path):
    done = cli("check", tmp_path / "none")
    assert (done.code, done.out) == (66, "")

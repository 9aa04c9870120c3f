from __future__ import annotations

import hashlib
import json


def test_the_facts(cli, tiny):
    done = cli("show", tiny)
    assert (done.code, done.err) == (0, "")
    assert "architecture" in done.out
    assert "28.8 k (28,832)" in done.out
    assert "</s>" in done.out  # what ends an answer
    assert "tokenizer_config.json: chat_template" in done.out
    assert "\x1b" not in done.out


def test_json(cli, tiny):
    facts = json.loads(cli("show", tiny, "--json").out)
    assert facts["num_hidden_layers"] == 2
    assert facts["stop_tokens"] == {"2": "</s>"}
    assert facts["notes"] == []


def test_more_in_json(cli, tiny):
    facts = json.loads(cli("show", tiny, "--json", "--tensors", "--program", "--hash").out)
    weights = tiny / "model.safetensors"
    assert facts["sha256"] == {str(weights): hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert len(facts["tensors_list"]) == facts["tensors"] == 20
    assert facts["tensors_list"][0] == {
        "name": "model.embed_tokens.weight",
        "dtype": "F32",
        "shape": [320, 32],
        "file": "model.safetensors",
    }
    assert any(line.strip().startswith("linear    q, k, v") for line in facts["program"])


def test_the_plain_program(cli, tiny):
    plain = cli("show", tiny, "--program", "--unfused").out
    assert "linear    q " in plain
    assert "linear    q, k, v" not in plain


def test_tensors_and_hash_as_text(cli, tiny):
    out = cli("show", tiny, "--tensors", "--hash").out
    assert "model.norm.weight" in out
    assert "sha256  " in out


def test_colours_only_where_asked_for(cli, tiny, monkeypatch):
    assert "\x1b[1m" in cli("show", tiny, "--color", "always").out
    monkeypatch.setenv("EDGELLM_COLOR", "always")
    assert "\x1b[1m" in cli("show", tiny).out
    assert "\x1b" not in cli("show", tiny, "--color", "never").out


def test_names_from_files_cannot_steer_the_terminal(cli, tiny, tmp_path):
    import shutil

    copy = shutil.copytree(tiny, tmp_path / "copy")
    config = json.loads((copy / "tokenizer_config.json").read_text()) | {"eos_token": "</s>\x1b[2J"}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    done = cli("show", copy)
    assert "\x1b" not in done.out + done.err

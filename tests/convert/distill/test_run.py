"""A distillation from first to last, and what ends it before it begins."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from edgellm.convert.distill.listener import Listener
from edgellm.convert.distill.reduction import Reduction
from edgellm.convert.distill.run import REPORT_FILE, Job, distill
from edgellm.convert.distill.settings import Settings
from edgellm.convert.distill.state import state_path
from edgellm.errors import ModelError, OutOfMemoryError, OutputError, UsageError
from edgellm.model import open_model
from tests.backends.running import load

#: The teacher is random, so the text would teach something else: alpha is 1.
SETTINGS = Settings(
    length=16, steps=10, batch_size=4, heal_rows=16, heal_steps=5, eval_every=5, save_seconds=0, alpha=1.0
)
CUT = Reduction(layers=1, intermediate_size=48)


def test_a_student_is_cut_healed_trained_and_written(tiny, text, tmp_path):
    longer = Settings(**{**vars(SETTINGS), "steps": 60, "learning_rate": 3e-3, "held_out": 0.2, "eval_every": 30})
    report = distill(Job(tiny, tmp_path / "out", [text], reduction=CUT), longer)
    assert report["student"]["num_hidden_layers"] == 1
    assert report["student"]["intermediate_size"] == 48
    assert list(report["quality"]) == ["teacher", "cut", "healed", "trained"]
    kl = {name: found["kl"] for name, found in report["quality"].items()}
    assert kl["trained"] < kl["healed"] < kl["cut"]
    assert kl["teacher"] == pytest.approx(0, abs=1e-6)
    assert json.loads((tmp_path / "out" / REPORT_FILE).read_text())["quality"] == report["quality"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with open_model(tmp_path / "out") as model:
        assert model.weights.unused() == []
        assert model.weights.program.parameters == report["student"]["parameters"]
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == (tiny / "tokenizer.model").read_bytes()
    assert load(tmp_path / "out").program.config.num_hidden_layers == 1


def test_a_pruned_checkpoint_is_repaired_against_its_teacher(tiny, text, tmp_path):
    first = Job(tiny, tmp_path / "cut", [text], reduction=CUT)
    distill(first, Settings(**{**vars(SETTINGS), "steps": 0, "heal": "none"}))
    report = distill(Job(tmp_path / "cut", tmp_path / "out", [text], teacher=tiny), SETTINGS)
    assert report["blocks"][0]["teacher_layer"] == 0
    assert report["quality"]["trained"]["kl"] < report["quality"]["cut"]["kl"]


def test_an_interrupted_run_goes_on_to_the_same_bytes(tiny, text, tmp_path):
    class Interrupt(Listener):
        def step(self, progress):
            if progress.step == 4:
                raise KeyboardInterrupt

    job = Job(tiny, tmp_path / "a", [text], reduction=CUT)
    distill(job, SETTINGS)
    stopped = Job(tiny, tmp_path / "b", [text], reduction=CUT)
    with pytest.raises(KeyboardInterrupt):
        distill(stopped, SETTINGS, listener=Interrupt())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", state_path(tmp_path / "b").name]
    with pytest.raises(OutputError, match="--resume"):
        distill(stopped, SETTINGS)
    other = Settings(**{**vars(SETTINGS), "seed": 5})
    resumed = Job(tiny, tmp_path / "b", [text], reduction=CUT, resume=True)
    with pytest.raises(ModelError, match="another run"):
        distill(resumed, other)
    distill(resumed, SETTINGS)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not state_path(tmp_path / "b").exists()


def test_a_dry_run_writes_nothing(tiny, text, tmp_path):
    report = distill(Job(tiny, tmp_path / "out", [text], reduction=CUT, dry_run=True), SETTINGS)
    assert report["predicted"]["seconds"] > 0
    assert list(report["quality"]) == ["teacher", "cut"]
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused_before_anything_is_read(tiny, text, tmp_path):
    class Heard(Listener):
        def phase(self, name):
            raise AssertionError(name)

    with pytest.raises(OutOfMemoryError, match="bytes needed"):
        distill(Job(tiny, tmp_path / "out", [text], reduction=CUT), SETTINGS, available_bytes=1000, listener=Heard())


def test_what_cannot_be_is_refused(tiny, text, tmp_path):
    with pytest.raises(UsageError, match="nothing to learn"):
        distill(Job(tiny, tmp_path / "out", [text]), SETTINGS)
    with pytest.raises(OutputError, match="is a model that is read"):
        distill(Job(tiny, tiny, [text], reduction=CUT, overwrite=True), SETTINGS)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        distill(Job(tiny, tmp_path / "taken", [text], reduction=CUT), SETTINGS)
    with pytest.raises(OutputError, match="missing"):
        distill(Job(tiny, tmp_path / "no" / "out", [text], reduction=CUT), SETTINGS)
    with pytest.raises(UsageError, match="--length"):
        distill(Job(tiny, tmp_path / "out", [text], reduction=CUT), Settings(length=10**6))


def test_a_teacher_with_other_words_is_refused(tiny, text, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] - 1}))
    from safetensors.numpy import load_file, save_file

    tensors = load_file(other / "model.safetensors")
    tensors["model.embed_tokens.weight"] = np.ascontiguousarray(tensors["model.embed_tokens.weight"][:-1])
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(ModelError, match="vocabular"):
        distill(Job(tiny, tmp_path / "out", [text], teacher=other), SETTINGS)

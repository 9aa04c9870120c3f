from __future__ import annotations

import json

import pytest

from edgellm.convert.distill.state import state_path

SMALL = ("--length", 16, "--batch-size", 4, "--heal-rows", 8, "--heal-steps", 2, "--eval-every", 2)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the dog sat under the tree and then the cat said hello how are you fine thanks " * 12)
    return path


def test_a_student_is_made(cli, tiny, text, tmp_path):
    out = tmp_path / "student"
    done = cli("distill", tiny, out, "--text", text, "--layers", 1, "--steps", 4, *SMALL)
    assert done.code == 0, done.err
    assert "perplexity" in done.out
    assert "of the teacher's" in done.out
    assert "memory: " in done.err
    assert "t/s measured, about 0:" in done.err
    assert "step 4: loss" in done.err
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 1
    assert cli("check", out).code == 0


def test_json_and_a_teacher(cli, tiny, text, tmp_path):
    first, out = tmp_path / "cut", tmp_path / "student"
    assert (
        cli("distill", tiny, first, "--text", text, "--layers", "1,", "--steps", 0, "--heal", "none", *SMALL).code == 0
    )
    done = cli("distill", first, "--teacher", tiny, out, "--text", text, "--steps", 2, "--json", *SMALL)
    report = json.loads(done.out)
    assert done.code == 0
    assert report["blocks"][0]["teacher_layer"] == 1
    assert report["student"]["num_hidden_layers"] == 1
    assert report["training"]["steps"] == 2
    assert report["peak_memory_bytes"] > 0


def test_a_dry_run_writes_nothing(cli, tiny, text, tmp_path):
    done = cli("distill", tiny, tmp_path / "out", "--text", text, "--hidden-size", 16, "--dry-run", *SMALL)
    assert done.code == 0
    assert "about 0:" in done.out
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named(cli, tiny, text, tmp_path):
    out = tmp_path / "out"
    nothing = cli("distill", tiny, out, "--layers", 1)
    assert nothing.code == 2
    assert "--text" in nothing.err
    teacherless = cli("distill", tiny, out, "--text", text)
    assert teacherless.code == 2
    assert "--teacher" in teacherless.err
    wrong = cli("distill", tiny, out, "--text", text, "--layers", 7, *SMALL)
    assert wrong.code == 2
    assert "found 7, allowed: 1 to 2" in wrong.err
    absent = cli("distill", tiny, out, "--text", tmp_path / "absent.txt", "--layers", 1)
    assert absent.code == 66
    assert cli("distill", tiny, out, "--text", text, "--layers", 1, "--alpha", 2).code == 2
    assert cli("distill", tiny, out, "--text", text, "--layers", 1, "--resume", *SMALL).code == 66
    assert not out.exists()


def test_an_interruption_says_how_to_go_on(cli, tiny, text, tmp_path, monkeypatch):
    from edgellm.cli import distill

    out = tmp_path / "out"
    seen = []

    def interrupt(self, progress):
        seen.append(progress.step)
        raise KeyboardInterrupt

    arguments = ("distill", tiny, out, "--text", text, "--layers", 1, "--steps", 3, *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(distill._Shown, "step", interrupt)
        stopped = cli(*arguments)
    assert stopped.code == 130
    assert seen == [1]
    assert "--resume" in stopped.err
    assert state_path(out).exists()
    assert cli(*arguments, "--resume").code == 0
    assert out.is_dir()
    assert not state_path(out).exists()

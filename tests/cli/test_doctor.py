from __future__ import annotations

import json

import pytest

from edgellm.cli import machine


def test_json(cli, tiny):
    done = cli("doctor", tiny, "--json")
    facts = json.loads(done.out)
    assert done.code == 0
    assert facts["self_test"]["ok"]
    assert facts["self_test"]["tokens"] == 4
    assert facts["backends"]["reference"] == "ok"
    assert facts["cores"]["allowed"] >= 1
    assert set(facts["folders"]) == {"state", "data", "cache", "config"}


def test_text_has_the_home_folder_shortened(cli, tiny, environment):
    done = cli("doctor", tiny)
    assert environment["HOME"] not in done.out
    assert "~" in done.out


def test_secrets_are_left_out(cli, tiny, monkeypatch):
    monkeypatch.setenv("EDGELLM_API_KEY", "hunter2")
    monkeypatch.setenv("EDGELLM_MODELS", "/models")
    done = cli("doctor", tiny)
    assert "hunter2" not in done.out
    assert "/models" in done.out


def test_a_failed_self_test_is_a_finding(cli, tmp_path):
    done = cli("doctor", tmp_path / "none", "--json")
    facts = json.loads(done.out)
    assert done.code == 66
    assert not facts["self_test"]["ok"]
    assert "no such file" in facts["self_test"]["error"]


def test_folders_that_cannot_be_written(cli, tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGELLM_STATE_DIR", str(tmp_path / "file" / "below"))
    assert json.loads(cli("doctor", tiny, "--json").out)["folders"]["state"]["state"] == "cannot be created"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_control_group(files, expected, tmp_path):
    for name, text in {**files, "../../../proc/self/cgroup": "4:cpu:/\n0::/\n"}.items():
        place = (tmp_path / "sys/fs/cgroup" / name).resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    assert machine.cores(tmp_path)["cgroup_quota"] == expected


def test_the_limit_of_a_control_group(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1073741824\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.memory()["cgroup_limit_bytes"] == 1 << 30
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory()["cgroup_limit_bytes"] is None

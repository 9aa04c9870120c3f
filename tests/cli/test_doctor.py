from __future__ import annotations

import json
import os

import pytest

from edgellm.api import memory
from edgellm.backends.cpu.jit_cache import ENTRY
from edgellm.backends.cpu.jit_folder import CacheFolders
from edgellm.cli import doctor, machine
from edgellm.errors import BackendUnavailable


def test_json(cli, tiny):
    done = cli("doctor", tiny, "--json")
    facts = json.loads(done.out)
    assert done.code == 0
    assert facts["self_test"]["ok"]
    assert facts["self_test"]["tokens"] == 4
    assert facts["backends"]["reference"] == "ok"
    assert facts["cores"]["allowed"] >= 1
    assert set(facts["folders"]) == {"state", "data", "cache", "config"}
    runs_on = facts["runs_on"]
    assert (runs_on["backend"], facts["self_test"]["backend"]) == ("cpu", "cpu")
    assert runs_on["isa"] in runs_on["isas"]
    assert runs_on["threads"] >= 1
    assert runs_on["kernels_folder"].startswith(os.environ["EDGELLM_CACHE_DIR"])


def test_whether_kernels_are_compiled(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_self_test", lambda *_: {"ok": True})
    for root, expected in ((tmp_path / "jit", "none were compiled"), (None, "are compiled")):
        places = CacheFolders([root or tmp_path / "jit"])
        if root is None:
            (places.writable() / f"a{ENTRY}").write_bytes(b"")
        monkeypatch.setattr("edgellm.backends.cpu.jit_cache.folders", lambda places=places: places)
        assert expected in json.loads(cli("doctor", tiny, "--json").out)["runs_on"]["kernels"]


def test_a_backend_that_cannot_run_is_a_finding(cli, tiny, monkeypatch):
    def fail():
        raise BackendUnavailable("on holiday")

    monkeypatch.setattr("edgellm.backends.find", fail)
    monkeypatch.setattr(doctor, "_self_test", lambda *_: {"ok": True})
    assert json.loads(cli("doctor", tiny, "--json").out)["runs_on"] == {"error": "on holiday"}


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
    for name in ("_PROC", "_CGROUP"):
        monkeypatch.setattr(memory, name, tmp_path)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/job\n")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "memory.max").write_text("1073741824\n")
    assert machine.memory()["cgroup_limit_bytes"] == 1 << 30
    (tmp_path / "job" / "memory.max").write_text("max\n")
    assert machine.memory()["cgroup_limit_bytes"] is None
    assert machine.memory()["total_bytes"] > 1 << 20  # the system's own count, without /proc

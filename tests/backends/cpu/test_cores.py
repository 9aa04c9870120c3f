"""Counting cores: affinity, hyperthreads and quotas, on made-up machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgellm.backends.cpu.cores import Cores, choose_threads, detect
from edgellm.errors import UsageError


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_hyperthreads_count_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 4, 5, 6}, raising=False)
    names = {f"sys/devices/system/cpu/cpu{n}/topology/core_cpus_list": f"{n % 4},{n % 4 + 4}" for n in range(8)}
    cores = detect(_write(tmp_path, names))
    assert (cores.processors, cores.count, cores.usable) == ((0, 1, 2), 3, 3)


def test_without_topology_every_processor_is_a_core(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 9}, raising=False)
    assert detect(tmp_path) == Cores((3, 9), 2, None)


def test_without_affinity_the_system_is_asked(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr("sys.platform", "win32")
    assert detect(tmp_path) == Cores((), 6, None)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "200000 100000"}, 2.0),
        ({"proc/self/cgroup": "0::/../not/here", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3.0),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/x\n0::/", "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "50000",
          "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, 0.5),
        ({"proc/self/cgroup": "1:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"proc/self/cgroup": "garbage", "sys/fs/cgroup/cpu.max": "9"}, None),
    ],
)  # fmt: skip
def test_quotas_of_both_versions(tmp_path, monkeypatch, files, quota):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    cores = detect(_write(tmp_path, files))
    assert cores.quota == quota
    assert cores.usable == (8 if quota is None else max(1, int(quota)))


def test_this_machine_has_a_core():
    assert 1 <= detect().usable <= (os.cpu_count() or 1)


def test_more_threads_than_cores_are_said():
    cores = Cores((0, 1, 2, 3), 4, 2.5)
    assert choose_threads(None, cores) == (2, None)
    assert choose_threads(2, cores) == (2, None)
    threads, note = choose_threads(4, cores)
    assert threads == 4
    assert "4 threads share 2 cores" in note


@pytest.mark.parametrize("asked", [0, -1, 257, True, 2.0, "2"])
def test_impossible_numbers_are_refused(asked):
    with pytest.raises(UsageError, match="threads"):
        choose_threads(asked, Cores((0,), 1, None))

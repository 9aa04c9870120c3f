"""What `edgellm doctor` says of GPUs, on machines without one and on a Jetson's files."""

from __future__ import annotations

import json

import pytest

from edgellm.backends.cuda import driver
from edgellm.cli import doctor, gpus
from edgellm.errors import BackendUnavailable


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.setattr(driver, "LIBRARIES", ("no-such-library.so",))
    driver.forget()
    yield
    driver.forget()


def test_a_machine_without_a_driver(no_driver):
    found = gpus.driver()
    assert not found["found"]
    assert "Install NVIDIA's driver" in found["why"]
    assert gpus.gpus() == []


def test_asking_without_a_driver_names_the_library(no_driver):
    with pytest.raises(BackendUnavailable, match=r"not installed here; found no no-such-library.so. Install NVIDIA's"):
        driver.driver()


def test_the_doctor_tells(no_driver, cli, tiny, monkeypatch):
    monkeypatch.setattr(doctor, "_self_test", lambda *_: {"ok": True})
    monkeypatch.setattr(gpus, "jetson", lambda: {"power_mode": "MAXN"})
    facts = json.loads(cli("doctor", tiny, "--json").out)
    assert not facts["cuda_driver"]["found"]
    assert facts["gpus"] == []
    assert facts["jetson"] == {"power_mode": "MAXN"}


def test_a_jetson_by_its_files(tmp_path, monkeypatch):
    for name, text in {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
        "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
        "sys/kernel/debug/bpmp/debug/clk/emc/rate": "3199000000\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(gpus, "_power_mode", lambda: "NV Power Mode: MAXN_SUPER 2")
    assert gpus.jetson(tmp_path) == {
        "model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "release": "R36 (release), REVISION: 4.3",
        "power_mode": "NV Power Mode: MAXN_SUPER 2",
        "gpu_clock_mhz": {"cur": 306, "max": 1020},
        "memory_clock_mhz": 3199,
    }


def test_no_jetson(tmp_path):
    assert gpus.jetson(tmp_path) is None


def test_the_power_mode_on_one_line(tmp_path, monkeypatch):
    tool = tmp_path / "nvpmodel"
    tool.write_text("#!/bin/sh\necho 'NV Power Mode: 15W'\necho 0\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus._power_mode() == "NV Power Mode: 15W 0"
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert gpus._power_mode() is None

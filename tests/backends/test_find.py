"""Backends are found by name; what was asked for is never replaced."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator

import pytest

from edgellm.backends import _DEVICES, _UNFINISHED, find, installed
from edgellm.errors import BackendUnavailable


def test_every_installed_backend_is_found_by_its_name_or_says_what_it_lacks() -> None:
    assert installed() == ["cuda", "cpu", "reference"]
    for name in installed():
        backend = importlib.import_module(f"edgellm.backends.{name}").backend
        assert backend.devices == _DEVICES[name]
        assert backend.finished == (name not in _UNFINISHED)
        lacks = backend.unavailable()
        if lacks is None:
            assert find(name).name == name
            continue
        assert name == "cuda"
        with pytest.raises(BackendUnavailable, match="backend: cannot run here") as raised:
            find(name)
        assert lacks in raised.value.hint


@pytest.mark.parametrize("device", [None, "auto", "cpu"])
def test_without_a_name_a_finished_backend_is_taken(device: str | None) -> None:
    assert find(None, device).finished
    assert find(None, device).name == "cpu"


@pytest.mark.parametrize("name", [None, "cpu"])
def test_a_broken_installation_is_no_reason_to_run_slowly(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(module: str) -> None:
        raise ImportError("Numba needs NumPy 2.4 or less")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(
        BackendUnavailable, match=r"backend: .*Numba needs NumPy 2.4 or less; found (cpu|cuda).*reference"
    ):
        find(name)


@pytest.mark.parametrize(("name", "device"), [("cpu", "cuda"), ("reference", "cuda:1"), (None, "tpu")])
def test_a_device_that_nothing_serves_is_refused(name: str | None, device: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"device: no backend .*found {device}.*runs on cpu only"):
        find(name, device)


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from edgellm.backends.cuda import driver

    monkeypatch.setattr(driver, "LIBRARIES", ("no-such-library.so",))
    driver.forget()
    yield
    driver.forget()


@pytest.mark.parametrize("name", [None, "cuda"])
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_without_a_driver_a_gpu_is_refused_with_what_to_install(name: str | None, device: str, no_driver: None) -> None:
    begin = time.perf_counter()
    with pytest.raises(BackendUnavailable, match=f"found {device}.*(Install NVIDIA's driver|install edgellm anew)"):
        find(name, device)
    assert time.perf_counter() - begin < 1


def test_without_a_driver_nobody_asks_for_one(no_driver: None) -> None:
    assert find(None, "auto").name == "cpu"


def test_a_backend_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="backend: no such backend in this version; found nope, allowed: "):
        find("nope")


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(find("reference")), "unavailable", lambda self: "the processor is on holiday")
    with pytest.raises(BackendUnavailable, match=r"backend: cannot run here.*backend reference: the processor is on"):
        find("reference")

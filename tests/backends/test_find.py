"""Backends are found by name; what was asked for is never replaced."""

from __future__ import annotations

import pytest

from edgellm.backends import find, installed
from edgellm.errors import BackendUnavailable


def test_every_installed_backend_is_found_by_its_name() -> None:
    assert installed()[-1] == "reference"
    for name in installed():
        assert find(name).name == name


@pytest.mark.parametrize("device", [None, "auto", "cpu"])
def test_without_a_name_a_finished_backend_is_taken(device: str | None) -> None:
    assert find(None, device).finished
    assert find(None, device).name == "cpu"


@pytest.mark.parametrize("name", [None, "cpu"])
def test_a_broken_installation_is_no_reason_to_run_slowly(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(module: str) -> None:
        raise ImportError("Numba needs NumPy 2.4 or less")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(BackendUnavailable, match=r"backend: .*Numba needs NumPy 2.4 or less; found cpu.*reference"):
        find(name)


@pytest.mark.parametrize(("name", "device"), [(None, "cuda"), (None, "cuda:1"), ("reference", "cuda"), (None, "tpu")])
def test_a_device_that_nothing_serves_is_refused(name: str | None, device: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"device: no backend .*found {device}.*reference runs on cpu only"):
        find(name, device)


def test_a_backend_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="backend: no such backend in this version; found nope, allowed: "):
        find("nope")


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(find("reference")), "unavailable", lambda self: "the processor is on holiday")
    with pytest.raises(BackendUnavailable, match=r"backend: cannot run here.*backend reference: the processor is on"):
        find("reference")

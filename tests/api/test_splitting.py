"""How many layers go on a GPU, without one: what is asked for, what fits, what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import edgellm
from edgellm.api import splitting
from edgellm.backends.interface import DeviceMemoryPlan, MemoryPlan
from edgellm.backends.split import SplitBackend
from tests.fakes import FakeBackend

LAYERS = 6
GIB = 1 << 30


@pytest.fixture
def backends(monkeypatch):
    """(the GPU's, the CPU's), found by their names."""
    both = {name: FakeBackend() for name in ("cuda", "cpu")}
    for name, backend in both.items():
        backend.name = name
    monkeypatch.setattr(splitting, "find", lambda name, device=None: both[name])
    return both["cuda"], both["cpu"]


def plan_of(backend) -> SimpleNamespace:
    """A layer takes a GiB of the GPU's four, the lm_head one more."""
    layers = backend.layers if isinstance(backend, SplitBackend) else LAYERS + 1
    there = DeviceMemoryPlan("cuda:0", 4 * GIB, layers * GIB, 0, 0)
    return SimpleNamespace(backend=backend, memory=MemoryPlan(0, 0, 0, 0, on_device=there))


def split(asked, **where):
    return splitting.plan_split(plan_of, LAYERS, asked, where.get("backend"), where.get("device")).backend


def test_all_some_or_none(backends):
    gpu, cpu = backends
    assert split(LAYERS) is gpu
    assert split(0) is cpu
    assert split(2, device="cuda:1").layers == 2
    assert split(2, backend="cuda").name == "cuda+cpu"


def test_as_many_as_fit(backends):
    assert split("auto").layers == 3  # a part of what is free is kept back


def test_not_a_single_layer_fits(backends, monkeypatch):
    monkeypatch.setattr(splitting, "_fits", lambda plan: False)
    with pytest.raises(edgellm.OutOfMemoryError, match="does not hold a single layer"):
        split("auto")


@pytest.mark.parametrize("asked", [-1, LAYERS + 1, True, "all", 1.5])
def test_no_number_of_layers(asked, backends):
    with pytest.raises(
        edgellm.UsageError, match=r"gpu_layers: not a number of layers; found .* allowed: auto, or 0 to 6"
    ):
        split(asked)


@pytest.mark.parametrize("where", [{"backend": "cpu"}, {"device": "cpu"}, {"backend": "reference", "device": "cuda"}])
def test_somewhere_that_is_no_gpu(where, backends):
    with pytest.raises(edgellm.UsageError, match="layers go on a GPU with backend cuda alone"):
        split(1, **where)

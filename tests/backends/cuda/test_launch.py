"""Modules, launches and graphs, by the one kernel that the self-test carries."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

from edgellm.backends.cuda import self_test as testing
from edgellm.backends.cuda.calls import KernelSet
from edgellm.backends.cuda.device import open_device
from edgellm.backends.cuda.graph import Graph
from edgellm.backends.cuda.jit import jit_code
from edgellm.backends.cuda.memory import Pool
from edgellm.backends.cuda.module import Module
from edgellm.backends.cuda.self_test import ADD_STEP, PTX, self_test
from edgellm.backends.cuda.stream import Event, Stream
from edgellm.backends.interface import StepStopped
from edgellm.errors import BackendUnavailable, EdgeLLMError


@pytest.fixture
def made(fake_gpu):
    """(fake, device, stream, launch of 100 numbers by 5, their address)."""
    fake = fake_gpu(80)
    device = open_device(0)
    pool = Pool(device, "numbers")
    stream, address = Stream(device), pool.allocate(400)
    with device:
        stream.fill(address, 400)
    launch = Module(device, PTX).function(ADD_STEP).prepare((1,), y=address, step=5, count=100)
    yield fake, device, stream, launch, address
    pool.close()


def read(device, stream, address) -> np.ndarray:
    found = np.zeros(100, np.uint32)
    with device:
        stream.download(found, address)
        stream.wait()
    return found


@pytest.mark.parametrize("capability", [70, 80, 90])
def test_a_gpu_that_works(capability, fake_gpu):
    fake_gpu(capability)
    assert self_test(0) is None


def test_a_gpu_that_counts_wrong(fake_gpu, monkeypatch):
    fake_gpu(80)
    monkeypatch.setattr(testing, "PTX", PTX.replace("add.s32 %r8, %r7, %r1", "add.s32 %r8, %r7, 6"))
    assert self_test(0).startswith("1000 of 1000 numbers came back wrong")


def test_a_gpu_that_fails_is_a_finding(fake_gpu):
    fake = fake_gpu(80)
    open_device(0)
    fake.fail("cuLaunchKernel", 719)
    assert "a kernel failed (cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED): add_step" in self_test(0)
    assert "no GPU of that number" in self_test(1)


def test_a_launch_runs_with_the_values_it_has_then(made):
    _, device, stream, launch, address = made
    with device:
        launch.run(stream)
        launch.values[1].value = 7
        launch.run(stream)
    assert read(device, stream, address).tolist() == [12] * 100


def test_arguments_are_held_to_the_kernels_own(made):
    _, device, _, _, address = made
    function = Module(device, PTX).function(ADD_STEP)
    with pytest.raises(TypeError, match="add_step takes y, step, count; given: y, steps"):
        function.prepare((1,), y=address, steps=1)
    assert function.blocks_a_multiprocessor() >= 1
    assert function.resources()["local"] == 0


@pytest.mark.parametrize(
    ("ptx", "match"),
    [
        (PTX.replace("sm_70", "sm_90"), "not built for this GPU .*NO_BINARY"),
        (PTX.replace(".version 6.3", ".version 99.0"), "too old for the kernels"),
        (PTX.replace("mov.u32", "mow.u32"), "cannot compile the kernels"),
        (PTX.replace("add_step(", "add_steps("), "lack one that is needed"),
    ],
)
def test_code_that_the_driver_refuses(ptx, match, made):
    with pytest.raises(BackendUnavailable, match=match):
        Module(made[1], ptx).function(ADD_STEP)


def test_a_graph_is_not_run_before_it_is_launched(made):
    _, device, stream, launch, address = made
    graph = Graph(stream, lambda: [launch.run(stream), launch.run(stream)])
    assert graph.nodes == 2
    assert not read(device, stream, address).any()
    with device:
        for _ in range(3):
            graph.launch()
    assert read(device, stream, address).tolist() == [30] * 100


def test_what_cannot_be_recorded_says_so_and_leaves_the_stream_usable(made):
    _, device, stream, launch, address = made
    with pytest.raises(EdgeLLMError, match="CUDA_ERROR_STREAM_CAPTURE"):
        Graph(stream, lambda: [launch.run(stream), stream.wait()])
    with pytest.raises(ZeroDivisionError):
        Graph(stream, lambda: 1 // 0)
    with device:
        launch.run(stream)
    assert read(device, stream, address)[0] == 5


def test_handles_go_with_their_objects(made):
    fake, device, stream, launch, _ = made
    graph = Graph(stream, lambda: launch.run(stream))
    event = Event(device)
    del graph, event
    gc.collect()
    assert fake.calls["cuGraphExecDestroy"] == fake.calls["cuGraphDestroy"] == fake.calls["cuEventDestroy_v2"] == 1


def test_a_long_step_can_be_stopped(made):
    _, device, stream, launch, address = made
    with device:
        launch.run(stream)
        launch.run(stream)
        with pytest.raises(StepStopped):
            stream.wait_or_stop(lambda: True)
        assert read(device, stream, address)[0] == 10  # the device came to rest
        launch.run(stream)
        stream.wait_or_stop(lambda: False)
    assert read(device, stream, address)[0] == 15


def test_time_on_the_device(made):
    _, _, stream, launch, _ = made
    assert stream.time(lambda: launch.run(stream)) > 0


def test_kernels_can_be_compiled_from_their_sources(fake_gpu):
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    fake_gpu(80)
    device = open_device(0)
    kernels = KernelSet(device, jit_code())
    assert kernels.function("add").entry.name == "add"
    assert kernels.runs("add")
    assert not kernels.runs("subtract")


def test_without_the_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.delitem(sys.modules, "edgellm.backends.cuda.ptx.fresh", raising=False)
    monkeypatch.setitem(sys.modules, "edgellm.backends.cuda.ptx.compile", None)
    with pytest.raises(BackendUnavailable, match=r"kernels: the compiler of CUDA kernels is not installed.*cuda13"):
        jit_code()

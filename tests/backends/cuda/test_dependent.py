"""Launches that begin beside the one before them: where they are asked for, and that nothing is touched too early."""

from __future__ import annotations

import re
from ctypes import addressof, c_uint32, c_uint64, c_void_p, sizeof

import numpy as np
import pytest

from edgellm.backends.cuda.backend import CudaBackend
from edgellm.backends.cuda.cache import CudaCache
from edgellm.backends.cuda.dependent import LAUNCH, LaunchAttribute, LaunchConfig, dependent_config, waiting
from edgellm.backends.cuda.runner import CudaRunner
from edgellm.backends.cuda.shipped import shipped
from edgellm.backends.interface import Batch
from edgellm.backends.slots import SlotState
from edgellm.model import fuse, open_model
from tests.backends.cuda.test_fake_driver import ADD, COUNT, Host
from tests.backends.running import geometry, greedy
from tests.golden_models import GOLDEN_FOLDER, cases
from tools.ptx_emulator import Memory, Module
from tools.ptx_emulator.driver import FakeDriver
from tools.ptx_emulator.driver_work import GraphExec
from tools.ptx_emulator.errors import EmulatorError
from tools.ptx_emulator.overlap import Overlap

FEW = ("llama-gqa-head-dim", "gemma3", "olmo2")


def load(name: str) -> CudaRunner:
    with open_model(GOLDEN_FOLDER / name) as model:
        return CudaBackend().load(fuse(model.weights.program), model.weights, lm_head="keep")


def decode_once(runner: CudaRunner) -> CudaCache:
    cache = runner.new_cache(geometry(runner, 16, 8, "float16"), 1)
    runner.run(cache, Batch.of([(SlotState(0), [3], "last")]))
    return cache


@pytest.mark.parametrize("case", [case for case in cases() if case.name in FEW], ids=str)
def test_a_hopper_overlaps_launches_and_nothing_comes_too_early(case, shipped_gpu):
    fake = shipped_gpu(90, overlaps=True)
    runner, expected = load(case.name), case.reference()
    ids = expected["input_ids_0"][:20]
    chunk = 16  # a prompt by the prefill kernels, then one by the decode kernels
    cache = runner.new_cache(geometry(runner, 32, chunk, "float16"), 1)
    state = SlotState(0)
    for part in (ids[:chunk], ids[chunk:]):
        runner.run(cache, Batch.of([(state, part.tolist(), "last")]))
        state = state.extended(len(part))
    assert fake.calls[LAUNCH] > 0
    if case.name == FEW[0]:
        assert (
            greedy(runner, expected["input_ids_1"], 3, chunk=16, dtype="float16") == expected["greedy_1"][:3].tolist()
        )


def test_a_graph_has_every_edge_but_the_first(shipped_gpu):
    fake = shipped_gpu(90)
    runner = load("llama-mha")
    cache = decode_once(runner)
    (graph,) = [thing for thing in fake.handles.values() if isinstance(thing, GraphExec)]
    behind = [work.name for work in graph.works if not work.beside]
    assert behind == ["copy", "embed_w16", "copy"]
    assert sum(work.beside for work in graph.works) == 5 * runner.program.config.num_hidden_layers + 1
    assert cache.steps.launches(1) == len(graph.works)


class WithoutIt:
    """A library that has everything but the new launch."""

    def __init__(self, library) -> None:
        self._library = library

    def __getattr__(self, name: str):
        if name == LAUNCH:
            raise AttributeError(name)
        return getattr(self._library, name)


@pytest.mark.parametrize("why", ["switch", "capability", "version", "library"])
def test_where_it_is_not_asked_for(why, shipped_gpu, monkeypatch):
    fake = shipped_gpu(89 if why == "capability" else 90, version=(12, 2) if why == "version" else (12, 6))
    if why == "switch":
        monkeypatch.setenv("EDGELLM_CUDA_PDL", "0")
    if why == "library":
        from edgellm.backends.cuda import driver

        monkeypatch.setattr(driver, "load_library", lambda: WithoutIt(fake))
    decode_once(load("llama-mha"))
    assert fake.calls[LAUNCH] == 0
    assert fake.calls["cuLaunchKernel"] > 0


def test_structures_are_those_of_cuda_h():
    assert (LaunchAttribute.value.offset, sizeof(LaunchAttribute)) == (8, 72)
    offsets = [LaunchConfig.shared.offset, LaunchConfig.stream.offset, LaunchConfig.attributes.offset]
    assert (*offsets, LaunchConfig.count.offset, sizeof(LaunchConfig)) == (24, 32, 40, 48, 56)


@pytest.mark.parametrize(("capability", "attribute", "code"), [(90, 6, 0), (90, 5, 1), (89, 6, 1)])
def test_the_fake_driver_takes_the_attribute_where_a_device_would(capability, attribute, code):
    host = Host(FakeDriver(capability))
    address, function = host.alloc(4 * COUNT), host.function(ADD.replace("sm_90", "sm_80"))
    config = dependent_config((1, 1, 1), COUNT, 0)
    config.stream, config.attributes.contents.id = host.stream, attribute
    values = (c_uint64(address), c_uint32(1))
    pointers = (c_void_p * 2)(*map(addressof, values))
    assert host.fake.cuLaunchKernelEx(addressof(config), function, addressof(pointers), None) == code
    assert host.wait() == 0
    assert host.fake.launched == ([] if code else ["kernel"])


def test_every_kernel_waits_before_it_lets_the_next_begin():
    code = shipped()
    names = [name for name, entry in code.entries.items() if entry.runs_on(90)]
    text = code.module(names, 90)
    assert len(waiting(text)) > len(names) // 2
    for part in re.split(r"^\.visible \.entry ", text, flags=re.M)[1:]:
        marks = re.findall(r"^griddepcontrol\.(\w+);", part, re.M)
        assert marks in ([], ["wait", "launch_dependents"]), part.split("(")[0]


KERNEL = """.version 7.8
.target sm_90
.address_size 64
.visible .entry copies(.param .u64 copies_param_0, .param .u64 copies_param_1)
{
.reg .b64 %rd<3>;
.reg .b32 %r<3>;
ld.param.u64 %rd1, [copies_param_0];
ld.param.u64 %rd2, [copies_param_1];
BODY
ret;
}
"""
LOAD, STORE = "ld.global.u32 %r1, [%rd1];", "st.global.u32 [%rd2], %r1;"
WAIT, NEXT = "griddepcontrol.wait;", "griddepcontrol.launch_dependents;"


def follow(*body: str, second: tuple[int, int] = (1, 2)) -> None:
    """A launch that copies word 0 to word 1, and beside it one of `body` from and to the words `second`."""
    memory, before = Memory(), None
    base = memory.bind(np.arange(4, dtype=np.uint32))
    for lines, (source, target) in (((WAIT, NEXT, LOAD, STORE), (0, 1)), (body, second)):
        kernel, overlap = Module(KERNEL.replace("BODY", "\n".join(lines)), memory).kernel(), Overlap(before)
        kernel.run((1, 1, 1), (32, 1, 1), kernel.packed([base + 4 * source, base + 4 * target]), overlap=overlap)
        before = overlap


def test_what_may_stand_before_the_wait():
    follow(WAIT, NEXT, LOAD, STORE)
    follow(LOAD, WAIT, NEXT, STORE, second=(2, 1))  # what the launch before does not touch


@pytest.mark.parametrize(
    ("body", "second", "message"),
    [
        ((LOAD, WAIT, STORE), (1, 2), "reads what the launch before"),
        (("mov.u32 %r1, 7;", STORE, WAIT), (2, 1), "writes what the launch before"),
        (("mov.u32 %r1, 7;", STORE, WAIT), (2, 0), "writes what the launch before"),
        ((NEXT, WAIT), (2, 3), "lets the next launch begin before"),
        ((LOAD, STORE), (2, 3), "never waits"),
    ],
)
def test_what_comes_too_early_is_found(body, second, message):
    with pytest.raises(EmulatorError, match=message):
        follow(*body, second=second)

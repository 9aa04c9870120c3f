"""The driver that is none: what it does with memory, streams, graphs and modules, and what it refuses."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tests.backends.cuda.ptx_kernels import HEADER, entry
from tools.ptx_emulator import EmulatorError
from tools.ptx_emulator.driver import DEVICES, FakeDriver
from tools.ptx_emulator.driver_modules import newest_ptx

ADD = entry(
    ["u64", "u32"],
    """.reg .b32 t, v, x; .reg .b64 a, w; mov.u32 t, %tid.x; ld.param.u64 a, [p0]; ld.param.u32 x, [p1];
    mul.wide.u32 w, t, 4; add.u64 a, a, w; ld.global.u32 v, [a]; add.u32 v, v, x; st.global.u32 [a], v;""",
)
COUNT = 32


class Host:
    """Calls of the fake as the runtime makes them, on one stream."""

    def __init__(self, fake: FakeDriver | None = None) -> None:
        self.fake = fake or FakeDriver(90)
        assert self.fake.cuInit(0) == 0
        context = self.out(ctypes.c_void_p, "cuDevicePrimaryCtxRetain", 0)
        assert self.fake.cuCtxPushCurrent_v2(context) == 0
        self.stream = self.out(ctypes.c_void_p, "cuStreamCreate", 1)

    def out(self, kind: type, name: str, *arguments: object) -> int:
        value = kind()
        code = getattr(self.fake, name)(ctypes.byref(value), *arguments)
        assert code == 0, f"{name}: {code}"
        return value.value

    def alloc(self, size: int) -> int:
        return self.out(ctypes.c_uint64, "cuMemAlloc_v2", size)

    def locked(self, size: int) -> tuple[np.ndarray, int]:
        address = self.out(ctypes.c_void_p, "cuMemHostAlloc", size, 2)
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(np.uint32)
        return array, self.out(ctypes.c_uint64, "cuMemHostGetDevicePointer_v2", address, 0)

    def function(self, text: str = ADD, name: bytes = b"kernel") -> int:
        module = self.out(ctypes.c_void_p, "cuModuleLoadData", text.encode())
        return self.out(ctypes.c_void_p, "cuModuleGetFunction", module, name)

    def add(self, function: int, address: int, step: int, threads: int = COUNT, shared: int = 0) -> int:
        values = (ctypes.c_uint64(address), ctypes.c_uint32(step))
        pointers = (ctypes.c_void_p * 2)(*map(ctypes.addressof, values))
        return self.fake.cuLaunchKernel(function, 1, 1, 1, threads, 1, 1, shared, self.stream, pointers, None)

    def wait(self) -> int:
        return self.fake.cuStreamSynchronize(self.stream)


def test_memory_is_poisoned_and_nothing_runs_before_it_is_waited_for() -> None:
    host = Host()
    address = host.alloc(4 * COUNT)
    (array, seen_by_device), function = host.locked(4 * COUNT), host.function()
    assert seen_by_device != array.ctypes.data
    assert np.isnan(array.view(np.float32)).all()
    assert host.fake.cuMemsetD8Async(address, 1, 4 * COUNT, host.stream) == 0
    assert host.add(function, address, 5) == 0
    assert host.fake.cuMemcpyDtoHAsync_v2(array.ctypes.data, address, 4 * COUNT, host.stream) == 0
    assert np.isnan(array.view(np.float32)).all()
    assert host.fake.launched == []
    assert host.wait() == 0
    assert (array == 0x01010106).all()
    assert host.fake.launched == ["fill", "kernel", "copy"]


def test_locked_memory_is_read_when_the_stream_comes_to_it_and_other_memory_at_once() -> None:
    host = Host()
    address = host.alloc(4 * COUNT)
    locked, device_address = host.locked(4 * COUNT)
    plain = np.full(COUNT, 3, np.uint32)
    back = np.zeros(COUNT, np.uint32)
    for source, expected in ((locked, 9), (plain, 3)):
        source[:] = 3
        assert host.fake.cuMemcpyHtoDAsync_v2(address, source.ctypes.data, source.nbytes, host.stream) == 0
        source[:] = 9
        assert host.fake.cuMemcpyDtoHAsync_v2(back.ctypes.data, address, back.nbytes, host.stream) == 0
        assert (back == expected).all()
    assert host.add(host.function(), device_address, 1) == 0
    assert host.wait() == 0
    assert (locked == 10).all()


def test_freed_locked_memory_is_not_read() -> None:
    host = Host()
    address = host.alloc(64)
    array, _ = host.locked(64)
    assert host.fake.cuMemFreeHost(array.ctypes.data) == 0
    assert host.fake.cuMemFreeHost(array.ctypes.data) == 1
    assert host.fake.cuMemcpyHtoDAsync_v2(address, array.ctypes.data, 64, host.stream) == 1


def test_copies_stay_in_their_allocation() -> None:
    host = Host()
    address, data = host.alloc(64), np.zeros(65, np.uint8)
    assert host.fake.cuMemcpyHtoDAsync_v2(address, data.ctypes.data, 65, host.stream) == 1
    assert host.fake.cuMemcpyDtoDAsync_v2(address, address + 1, 64, host.stream) == 1
    assert host.fake.cuMemFree_v2(address + 1) == 1
    assert host.fake.cuMemFree_v2(address) == 0
    assert host.fake.cuMemcpyHtoDAsync_v2(address, data.ctypes.data, 1, host.stream) == 1


def test_a_full_device_and_failures_on_order() -> None:
    host = Host(FakeDriver(87))
    total, free = ctypes.c_size_t(), ctypes.c_size_t()
    address = ctypes.c_uint64()
    assert host.fake.cuMemAlloc_v2(ctypes.byref(address), DEVICES[87].total_bytes + 1) == 2
    held = host.alloc(1000)
    host.fake.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    assert total.value - free.value == 1024
    host.fake.fail("cuMemAlloc_v2", 2, nth=2)
    host.alloc(8)
    assert host.fake.cuMemAlloc_v2(ctypes.byref(address), 8) == 2
    host.alloc(8)
    host.fake.fail("cuStreamSynchronize", 719)
    assert host.wait() == 719
    assert host.wait() == 0
    assert host.fake.cuMemFree_v2(held) == 0


def test_graphs_record_and_replay_with_the_arguments_of_the_recording() -> None:
    host = Host()
    address, function = host.alloc(4 * COUNT), host.function()
    back = np.zeros(COUNT, np.uint32)
    host.fake.cuMemsetD8Async(address, 0, 4 * COUNT, host.stream)
    graphs = []
    for step in (1, 10):
        assert host.fake.cuStreamBeginCapture_v2(host.stream, 2) == 0
        assert host.add(function, address, step) == 0
        assert host.add(function, address, step) == 0
        graph = ctypes.c_void_p()
        assert host.fake.cuStreamEndCapture(host.stream, ctypes.byref(graph)) == 0
        graphs.append(graph.value)
    nodes = ctypes.c_size_t()
    assert host.fake.cuGraphGetNodes(graphs[0], None, ctypes.byref(nodes)) == 0
    assert nodes.value == 2
    ready = host.out(ctypes.c_void_p, "cuGraphInstantiateWithFlags", graphs[0], 0)
    for _ in range(3):
        assert host.fake.cuGraphLaunch(ready, host.stream) == 0
    assert host.fake.cuGraphExecUpdate_v2(ready, graphs[1], None) == 0
    assert host.fake.cuGraphLaunch(ready, host.stream) == 0
    host.fake.cuMemcpyDtoHAsync_v2(back.ctypes.data, address, back.nbytes, host.stream)
    assert (back == 26).all()
    assert host.fake.cuGraphExecDestroy(ready) == 0
    assert host.fake.cuGraphLaunch(ready, host.stream) == 400
    assert [host.fake.cuGraphDestroy(graph) for graph in graphs] == [0, 0]


def test_waiting_spoils_a_recording() -> None:
    host = Host()
    assert host.fake.cuStreamBeginCapture_v2(host.stream, 2) == 0
    assert host.wait() == 900
    graph = ctypes.c_void_p()
    assert host.fake.cuStreamEndCapture(host.stream, ctypes.byref(graph)) == 901
    assert not graph.value
    assert host.wait() == 0


def test_streams_wait_for_events_of_others() -> None:
    host = Host()
    address, function = host.alloc(4 * COUNT), host.function()
    other, event = host.out(ctypes.c_void_p, "cuStreamCreate", 1), host.out(ctypes.c_void_p, "cuEventCreate", 0)
    later = host.out(ctypes.c_void_p, "cuEventCreate", 0)
    back = np.zeros(COUNT, np.uint32)
    host.fake.cuMemsetD8Async(address, 0, 4 * COUNT, host.stream)
    host.add(function, address, 4)
    assert host.fake.cuEventRecord(event, host.stream) == 0
    assert host.fake.cuEventQuery(event) == 600
    assert host.fake.cuStreamWaitEvent(other, event, 0) == 0
    assert host.fake.cuEventRecord(later, other) == 0
    assert host.fake.cuMemcpyDtoHAsync_v2(back.ctypes.data, address, back.nbytes, other) == 0
    assert (back == 4).all()
    assert host.fake.cuEventSynchronize(later) == 0
    milliseconds = ctypes.c_float(-1)
    assert host.fake.cuEventElapsedTime(ctypes.byref(milliseconds), event, later) == 0
    assert milliseconds.value >= 0


def test_questions_let_the_device_go_on() -> None:
    host = Host()
    address, function = host.alloc(4 * COUNT), host.function()
    for step in range(3):
        host.add(function, address, step)
    assert [host.fake.cuStreamQuery(host.stream) for _ in range(5)] == [600, 600, 600, 0, 0]


@pytest.mark.parametrize(
    ("text", "capability", "version", "code", "log"),
    [
        (HEADER.replace("sm_90", "sm_80"), 75, (12, 6), 209, "sm_80 on sm_75"),
        (HEADER.replace("sm_90", "sm_90a"), 90, (12, 6), 209, ".target"),
        (HEADER.replace("8.0", "8.6"), 90, (12, 6), 222, "Unsupported .version 8.6"),
        (HEADER.replace("8.0", "9.1"), 120, (13, 0), 222, "Unsupported .version 9.1"),
        (HEADER + ".visible .entry kernel() { add.u32 %x, %y; }", 90, (12, 6), 218, "line 4"),
        (
            HEADER.replace("sm_90", "sm_75") + ".visible .entry kernel() { cp.async.wait_all; }",
            90,
            (12, 6),
            218,
            "sm_80",
        ),
        (HEADER + ".visible .entry kernel() { nonsense; }", 90, (12, 6), 218, "line 4"),
    ],
)
def test_modules_that_are_refused(text: str, capability: int, version: tuple[int, int], code: int, log: str) -> None:
    host = Host(FakeDriver(capability, version=version))
    image, buffer = ctypes.create_string_buffer(text.encode()), ctypes.create_string_buffer(500)
    options, values = (ctypes.c_int * 2)(5, 6), (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 500)
    module = ctypes.c_void_p()
    load = host.fake.cuModuleLoadDataEx
    assert load(ctypes.byref(module), ctypes.addressof(image), 2, options, values) == code
    assert log in buffer.value.decode()


def test_versions_of_ptx_by_driver() -> None:
    assert [newest_ptx(driver) for driver in [(11, 4), (12, 0), (12, 6), (12, 9), (13, 0), (13, 2)]] == [
        (7, 4),
        (8, 0),
        (8, 5),
        (8, 8),
        (9, 0),
        (9, 2),
    ]


def test_launches_that_are_refused() -> None:
    text = (
        HEADER
        + """.extern .shared .b8 room[]; .visible .entry kernel(.param .u64 p0, .param .u32 p1)
    .maxntid 64, 1, 1 { .shared .b8 own[1024]; .reg .b32 x; mov.u32 x, own; mov.u32 x, room; ret; }"""
    )
    host = Host()
    function = host.function(text)
    value = ctypes.c_int()
    attribute = host.fake.cuFuncGetAttribute
    assert attribute(ctypes.byref(value), 1, function) == 0
    assert value.value == 1024
    assert attribute(ctypes.byref(value), 99, function) == 1
    assert host.add(function, 0, 0, threads=65) == 701
    assert host.add(function, 0, 0, threads=64, shared=48 << 10) == 1
    assert host.fake.cuFuncSetAttribute(function, 8, 100 << 10) == 0
    assert host.add(function, 0, 0, threads=64, shared=100 << 10) == 0
    assert host.fake.cuFuncSetAttribute(function, 8, 227 << 10) == 1
    occupancy = host.fake.cuOccupancyMaxActiveBlocksPerMultiprocessor
    assert occupancy(ctypes.byref(value), function, 64, 100 << 10) == 0
    assert value.value == 2
    assert host.wait() == 0
    assert host.fake.cuModuleGetFunction(ctypes.byref(ctypes.c_void_p()), 0, b"kernel") == 400
    module = host.out(ctypes.c_void_p, "cuModuleLoadData", text.encode())
    assert host.fake.cuModuleGetFunction(ctypes.byref(ctypes.c_void_p()), module, b"another") == 500
    assert host.fake.cuModuleUnload(module) == 0
    assert host.fake.cuModuleUnload(module) == 400


def test_faults_are_raised_or_stay_as_a_device_has_them() -> None:
    host = Host()
    assert host.add(host.function(), 0x5000, 1) == 0
    with pytest.raises(EmulatorError, match="outside every allocation"):
        host.wait()
    host = Host(FakeDriver(90, raise_faults=False))
    address = host.alloc(4 * COUNT)
    assert host.add(host.function(), address + 2, 1) == 0
    assert host.wait() == 716
    assert "not aligned" in str(host.fake.fault)
    assert host.fake.cuMemFree_v2(address) == 716


def test_calls_out_of_order() -> None:
    fake = FakeDriver(devices=[])
    assert fake.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == 3
    assert fake.cuInit(0) == 100
    fake = FakeDriver(devices=[DEVICES[87], DEVICES[120]])
    assert fake.cuInit(0) == 0
    value = ctypes.c_int()
    assert fake.cuDeviceGetAttribute(ctypes.byref(value), 75, 1) == 0
    assert value.value == 12
    assert fake.cuDeviceGet(ctypes.byref(value), 2) == 101
    assert fake.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64()), 8) == 201
    assert fake.cuCtxPushCurrent_v2(0xC0001) == 201
    assert fake.calls["cuMemAlloc_v2"] == 1
    name = ctypes.create_string_buffer(5)
    assert fake.cuDeviceGetName(name, 5, 0) == 0
    assert name.value == b"Orin"
    text = ctypes.c_char_p()
    assert fake.cuGetErrorName(2, ctypes.byref(text)) == 0
    assert text.value == b"CUDA_ERROR_OUT_OF_MEMORY"


@pytest.mark.parametrize("capability", sorted(DEVICES))
def test_the_runtimes_self_test(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.backends.cuda import driver
    from edgellm.backends.cuda.self_test import self_test

    monkeypatch.setattr(driver, "load_library", lambda: FakeDriver(capability))
    driver.forget()
    try:
        assert self_test(0) is None
    finally:
        driver.forget()

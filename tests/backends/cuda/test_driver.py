"""The driver through ctypes: what it says becomes errors that tell what to do; devices, contexts, memory."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest

from edgellm.backends.cuda import driver
from edgellm.backends.cuda.device import count_devices, device_index, open_device, properties
from edgellm.backends.cuda.driver_errors import MEANINGS, CudaError
from edgellm.backends.cuda.memory import BLOCK, SMALL, HostBuffer, Pool
from edgellm.backends.cuda.stream import Stream
from edgellm.errors import BackendUnavailable, OutOfMemoryError, UsageError
from tools.ptx_emulator.driver_state import DEVICES


@pytest.mark.parametrize("code", sorted(MEANINGS))
def test_every_code_becomes_a_sentence_and_a_fix(code, fake_gpu):
    fake = fake_gpu(80)
    driver.driver()
    fake.fail("cuDeviceGetCount", code)
    expected = OutOfMemoryError if code == 2 else CudaError
    with pytest.raises(expected) as raised:
        count_devices()
    assert MEANINGS[code].what in str(raised.value)
    assert "cuDeviceGetCount" in str(raised.value)
    assert raised.value.hint == MEANINGS[code].hint


def test_an_unknown_code_is_named(fake_gpu):
    fake = fake_gpu(80)
    driver.driver()
    fake.fail("cuDeviceGetCount", 12345)
    with pytest.raises(BackendUnavailable, match=r"reports an error \(cuDeviceGetCount: error 12345\)"):
        count_devices()


def test_a_library_that_lacks_a_function_is_too_old(monkeypatch):
    monkeypatch.setattr(driver, "load_library", object)
    driver.forget()
    with pytest.raises(BackendUnavailable, match=r"too old for the kernels .*no cuInit.* Update NVIDIA's driver"):
        driver.driver()
    driver.forget()


def test_a_machine_with_a_driver_and_no_gpu(fake_gpu):
    fake_gpu(devices=[])
    with pytest.raises(BackendUnavailable, match=r"finds no GPU .*nvidia-smi"):
        driver.driver()


@pytest.mark.parametrize(("name", "index"), [(None, 0), ("cuda", 0), ("auto", 0), ("cuda:0", 0), ("cuda:12", 12)])
def test_the_number_of_a_device(name, index):
    assert device_index(name) == index


@pytest.mark.parametrize("name", ["cpu", "cuda:", "cuda:x", "cuda:-1", "auto:1", "cuda:1:2", "cuda:٣"])
def test_no_number_of_a_device(name):
    with pytest.raises(UsageError, match="device: no such device"):
        device_index(name)


def test_several_devices(fake_gpu):
    fake_gpu(devices=[DEVICES[87], DEVICES[90]])
    assert [properties(index).capability for index in range(count_devices())] == [87, 90]
    assert properties(0).integrated
    assert properties(1).architecture == "sm_90"
    assert open_device(1) is open_device(1)
    with pytest.raises(BackendUnavailable, match=r"no GPU of that number .*cuda:2 of 2"):
        open_device(2)


def test_a_device_that_is_too_old(fake_gpu):
    fake_gpu(devices=[replace(DEVICES[70], capability=61, name="GTX 1080")])
    with pytest.raises(BackendUnavailable, match=r"too old; found GTX 1080, compute capability 6.1, allowed: 7.0"):
        open_device(0)


def test_the_context_is_there_inside_alone(fake_gpu):
    fake = fake_gpu(80)
    device = open_device(0)
    assert fake.contexts == []
    with device, device:
        assert len(fake.contexts) == 2
    assert fake.contexts == []


def test_small_allocations_share_blocks(fake_gpu):
    fake = fake_gpu(80)
    pool = Pool(open_device(0), "numbers")
    addresses = [pool.allocate(1000) for _ in range(3)] + [pool.allocate(SMALL + 1)]
    assert all(address % 256 == 0 for address in addresses)
    assert addresses[1] - addresses[0] == 1024
    assert fake.calls["cuMemAlloc_v2"] == 2
    assert pool.nbytes == BLOCK + SMALL + 256
    pool.close()
    pool.close()
    assert fake.calls["cuMemFree_v2"] == 2


def test_a_pool_that_nobody_has_any_more_is_freed(fake_gpu):
    fake = fake_gpu(80)
    Pool(open_device(0), "numbers").allocate(1)
    gc.collect()
    assert fake.calls["cuMemFree_v2"] == 1


def test_a_full_device_says_what_was_to_go_where(fake_gpu):
    fake = fake_gpu(80)
    pool = Pool(open_device(0), "the weights")
    pool.allocate(SMALL + 1)
    fake.fail("cuMemAlloc_v2", 2)
    with pytest.raises(OutOfMemoryError, match=r"no memory for 1,048,576 bytes more of the weights; found .* free, "):
        pool.allocate(1 << 20)


def test_pinned_memory_stays_as_long_as_an_array_of_it(fake_gpu):
    fake = fake_gpu(80)
    array = HostBuffer(open_device(0), 64).array.view(np.float32)[4:]
    gc.collect()
    array[:] = 3
    assert fake.calls["cuMemFreeHost"] == 0
    del array
    gc.collect()
    assert fake.calls["cuMemFreeHost"] == 1


def test_copies_there_and_back(fake_gpu):
    fake_gpu(80)
    device = open_device(0)
    stream, pool = Stream(device), Pool(device, "numbers")
    there, numbers = pool.allocate(64), np.arange(16, dtype=np.float32)
    back = np.zeros_like(numbers)
    with device:
        stream.upload(there, numbers)
        stream.copy(there + 32, there, 16)
        stream.fill(there + 60, 4)
        stream.download(back, there)
        stream.wait()
        with pytest.raises(ValueError, match="contiguous"):
            stream.upload(there, numbers[::2])
    np.testing.assert_array_equal(back, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 0])

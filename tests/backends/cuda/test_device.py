"""On a GPU that is there (`-m cuda`): the driver for real, every golden model's greedy ids, both kinds of cache."""

from __future__ import annotations

import pytest

from edgellm.backends.cuda.backend import CudaBackend
from edgellm.backends.cuda.device import open_device
from edgellm.backends.cuda.measure import Yardstick
from edgellm.backends.cuda.self_test import self_test
from edgellm.cli import tracing
from edgellm.model import fuse, open_model
from tests.backends.running import greedy
from tests.golden_models import GoldenCase, cases

pytestmark = pytest.mark.cuda


def load(case: GoldenCase, **options: str):
    with open_model(case.folder) as model:
        return CudaBackend().load(fuse(model.weights.program), model.weights, **options)


def test_the_gpu_works():
    assert CudaBackend().unavailable() is None
    assert self_test(0) is None
    with Yardstick(0) as yardstick:
        assert yardstick.copy_bandwidth(0.1) > 1e9


@pytest.mark.parametrize("case", cases(), ids=str)
def test_greedy_ids_are_those_of_transformers(case):
    runner, expected = load(case, lm_head="keep"), case.reference()
    for number in (0, 1):
        ids, wanted = expected[f"input_ids_{number}"], expected[f"greedy_{number}"].tolist()
        assert greedy(runner, ids, len(wanted), dtype="float16") == wanted
    runner.close()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_same_step_gives_the_same_bits(dtype):
    runner = load(next(iter(cases())))
    ids = tracing.prompt(runner.program.config.vocab_size, 40)
    first, second = (tracing.logits_in_chunks(runner, ids, 17, dtype) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    runner.close()


def test_memory_comes_back():
    device = open_device(0)
    before = device.free_bytes()
    runner = load(next(iter(cases())))
    assert device.free_bytes() < before
    runner.close()
    assert device.free_bytes() >= before - (64 << 20)  # the code of kernels stays

"""A GPU that is not there: the fake driver in the driver's place, for tests of the runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from edgellm.backends.cuda import driver
from edgellm.backends.cuda.shipped import CODE, INDEX
from tools.ptx_emulator.driver import FakeDriver


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeDriver]]:
    """Call it with the arguments of `FakeDriver`: the process then has that driver, until the test ends."""

    def install(*arguments: object, **options: object) -> FakeDriver:
        fake = FakeDriver(*arguments, **options)
        monkeypatch.setattr(driver, "load_library", lambda: fake)
        driver.forget()
        return fake

    yield install
    driver.forget()


@pytest.fixture
def shipped_gpu(fake_gpu: Callable[..., FakeDriver]) -> Callable[..., FakeDriver]:
    """As `fake_gpu`, for tests that launch the kernels that the package carries."""
    if not (CODE / INDEX).is_file():
        pytest.skip("the kernels are not built: python -m tools.build_cuda_kernels")
    return fake_gpu

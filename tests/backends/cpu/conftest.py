"""A model on the CPU backend, for tests that need one of any kind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgellm.backends.cpu.backend import CpuBackend
from edgellm.backends.cpu.runner import CpuRunner
from edgellm.model import fuse, open_model
from tests.golden_models import GOLDEN_FOLDER


@pytest.fixture
def runner() -> Iterator[CpuRunner]:
    """Of windows that differ from layer to layer, in two threads; closed at the end."""
    with open_model(GOLDEN_FOLDER / "qwen2-mixed-window") as model:
        made = CpuBackend().load(fuse(model.weights.program), model.weights, threads=2)
    yield made
    made.close()

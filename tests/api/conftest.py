"""One tiny model for all tests of the API."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.models import write_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The folder of a random Llama with a byte tokenizer and a ChatML template."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny")

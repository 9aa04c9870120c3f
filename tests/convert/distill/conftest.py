"""A tiny model that has a tokenizer, and text for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import write_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of two layers and hidden size 32, a tokenizer and a chat template."""
    return write_model(tmp_path_factory.mktemp("distill") / "tiny")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 2,000 ids, half of them in conversations."""
    random = np.random.default_rng(1)
    words = ["the", "dog", "cat", "sat", "ran", "on", "under", "house", "tree", "and", "then", "hello", "how", "fine"]
    lines = []
    for number in range(60):
        line = " ".join(random.choice(words, 12))
        entry = {"messages": [{"role": "user", "content": line}]} if number % 2 else {"text": line}
        lines.append(json.dumps(entry))
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("\n".join(lines))
    return path

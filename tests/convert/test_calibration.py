"""Calibration tokens: rows that do not overlap, whatever the text is, and the built-in one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.convert.calibration import BUILT_IN, load_calibration, pack
from edgellm.errors import InputError, UsageError
from edgellm.model import open_model
from tests.api.models import write_model


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 400), prefix=st.lists(st.integers(900, 905), max_size=2), sequences=st.integers(1, 9),
    length=st.integers(3, 40), seed=st.integers(0, 3),
)  # fmt: skip
def test_rows_hold_every_id_at_most_once_behind_the_prefix(
    count: int, prefix: list[int], sequences: int, length: int, seed: int
) -> None:
    rows, notes = pack(np.arange(count), prefix, sequences, length, seed)
    room = min(length - len(prefix), count)
    assert rows.shape == (min(sequences, count // room), len(prefix) + room)
    assert (rows[:, : len(prefix)] == prefix).all()
    body = rows[:, len(prefix) :]
    assert len(np.unique(body)) == body.size
    assert (np.diff(body, axis=1) == 1).all()
    assert bool(notes) == (len(rows) < sequences or room < length - len(prefix))
    again, _ = pack(np.arange(count), prefix, sequences, length, seed)
    assert np.array_equal(rows, again)


def test_text_lines_and_conversations(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("abcdefgh" * 40)
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"text": "abcdefgh"}) + "\n" for _ in range(40)))
    chats = tmp_path / "chats.jsonl"
    messages = [{"role": "user", "content": "hi <|im_end|>"}, {"role": "assistant", "content": "yes"}]
    chats.write_text(json.dumps({"messages": messages}) + "\n")
    with open_model(write_model(tmp_path / "model")) as model:
        found = {path.stem: load_calibration(model, path, sequences=4, length=16) for path in (plain, lines, chats)}
        assert found["plain"].token_ids.shape == (4, 16)
        assert 258 in found["lines"].token_ids  # the end of a document
        assert (found["plain"].token_ids < 256).all()
        chat = found["chats"].token_ids
        assert chat.shape == (2, 16) or chat.shape == (4, 16)
        assert found["plain"].digest() != found["lines"].digest()
    with open_model(write_model(tmp_path / "bare", template=None)) as model:
        with pytest.raises(UsageError, match="no chat template"):
            load_calibration(model, chats, sequences=1, length=16)
        with pytest.raises(UsageError, match="no such positions"):
            load_calibration(model, plain, sequences=1, length=4096)
        (tmp_path / "empty.txt").write_text("")
        with pytest.raises(InputError, match="no text"):
            load_calibration(model, tmp_path / "empty.txt", sequences=1, length=16)


def test_the_built_in_text(tmp_path: Path) -> None:
    assert 60_000 < BUILT_IN.stat().st_size < 100_000
    with open_model(write_model(tmp_path / "model")) as model:
        found = load_calibration(model, sequences=8, length=256)
        other = load_calibration(model, sequences=8, length=256, seed=1)
    assert found.token_ids.shape == (8, 256)
    assert found.notes == ()
    assert not np.array_equal(found.token_ids, other.token_ids)

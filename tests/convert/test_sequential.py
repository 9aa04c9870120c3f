"""Calibration tokens on their way: parts of files, views that stay what they were, layers that nobody reads from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.convert.activations import Activations
from edgellm.convert.blocks import BlockRunner
from edgellm.convert.sequential import Sequential
from edgellm.errors import OutputError, UsageError
from edgellm.model import open_model
from tests.convert.converting import golden, tokens


@pytest.mark.parametrize("in_file", [False, True])
def test_parts_of_activations(in_file: bool, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((5, 7, 3)).astype(np.float32)
    kept = Activations(5, 7, 3, tmp_path / "x" if in_file else None)
    for a, b in ((0, 3), (3, 7)):
        kept.put(slice(0, 5), slice(a, b), values[:, a:b])
    np.testing.assert_array_equal(kept.read(0, 5), values)
    np.testing.assert_array_equal(kept.part(slice(1, 4), slice(2, 6)), values[1:4, 2:6])
    assert kept.read(2, 2).shape == (0, 7, 3)
    with pytest.raises(UsageError, match="activations"):
        kept.write(4, values[:2])
    if in_file:
        kept._file.truncate(4 * 3 * 7 * 4)
        with pytest.raises(OutputError, match="cut short"):
            kept.read(3, 5)
    kept.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["olmo2", "llama-mha"])  # olmo2's linears read the hidden states themselves
def test_several_passes_give_what_one_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokens(6).token_ids
    found = []
    for threads in (1, 3):
        monkeypatch.setattr("edgellm.convert.blocks.product_threads", lambda threads=threads: threads)
        seen: dict[tuple[str, ...], list[np.ndarray]] = {}
        with open_model(golden(name)) as model:
            runner = BlockRunner(model)
            hidden = Activations(*ids.shape, runner.program.buffers["x"])
            hidden.write(0, runner.embed(ids))
            begin, end = 1, runner.first_op(1)
            with runner.stretch(begin, end) as stretch:
                tap = lambda names, x, seen=seen: seen.setdefault(names, []).append(x.copy())  # noqa: E731
                stretch.run_all({"x": hidden}, hidden, tap)
        found.append([hidden.read(0, 6).copy(), *(np.concatenate(parts) for parts in seen.values())])
    assert len(found[0]) == 1 + len(seen) >= 5  # q k v, o, gate up, down, and what follows the layer
    for one, several in zip(*found, strict=True):
        np.testing.assert_allclose(several, one, rtol=0, atol=1e-5 * np.abs(one).max())


def test_what_nobody_reads_is_not_computed(tmp_path: Path) -> None:
    with open_model(golden("llama-mha")) as model:
        runner = BlockRunner(model)
        shown: dict[bool, list[str]] = {}
        for onward in (True, False):
            states = Sequential(runner, tmp_path, memory_bytes=1 << 20)
            states.begin(tokens().token_ids)
            names = shown[onward] = []
            states.staged(0, lambda *_: None, lambda op, names=names: names.extend(op.weights), onward=onward)
            after = states.hidden.read(0, 8).copy()
            states.close()
            expected = runner.block(0, runner.embed(tokens().token_ids))
            assert np.allclose(after, expected, atol=1e-5) == onward
    assert shown[True] == shown[False]
    assert "layers.0.mlp.down_proj" in shown[True]

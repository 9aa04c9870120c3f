"""Block by block is the whole model: logits of the golden models, taps, files in place of memory, replaced weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.convert.activations import Activations
from edgellm.convert.blocks import BlockRunner, Steps
from edgellm.convert.patched import PatchedWeights
from edgellm.errors import UsageError
from edgellm.model import open_model
from edgellm.model.cut import layer_span
from tests.golden_models import GoldenCase, cases


@pytest.mark.parametrize("case", cases(), ids=str)
def test_block_by_block_gives_the_models_logits(case: GoldenCase) -> None:
    reference = case.reference()
    tapped: set[str] = set()
    with open_model(case.folder) as model:
        runner = BlockRunner(model, step_tokens=32)
        x = runner.embed(reference["input_ids_0"].astype(np.int32)[None])
        for layer in range(runner.num_layers):
            x = runner.block(layer, x, lambda names, values: tapped.update(names))
        logits = runner.logits(x)[0][reference["pos_0"]]
        linears = {name for name, spec in runner.program.weights.items() if spec.kind == "linear"}
    assert np.abs(logits - reference["logits_0"]).max() < 1e-5 * np.abs(reference["logits_0"]).max()
    assert tapped == linears - {"lm_head"}


def _case(name: str) -> GoldenCase:
    return next(case for case in cases() if case.name == name)


def test_taps_see_the_inputs_that_the_linears_multiply() -> None:
    with open_model(_case("llama-mha").folder) as model:
        runner = BlockRunner(model)
        ids = np.arange(24, dtype=np.int32).reshape(2, 12)
        x = runner.embed(ids)
        seen: dict[tuple[str, ...], list[np.ndarray]] = {}
        y = runner.block(0, x, lambda names, values: seen.setdefault(names, []).append(values.copy()))
        inputs = np.concatenate(seen[("layers.0.mlp.down_proj",)])
        attended = np.concatenate(seen[("layers.0.self_attn.o_proj",)])
        down = inputs @ model.weights.linear("layers.0.mlp.down_proj").T
        o = attended @ model.weights.linear("layers.0.self_attn.o_proj").T
    np.testing.assert_allclose(x + (o + down).reshape(x.shape), y, rtol=0, atol=1e-5 * np.abs(y).max())


def test_sequences_do_not_see_each_other_and_steps_do_not_show() -> None:
    with open_model(_case("mistral-window").folder) as model:
        random = np.random.default_rng(0)
        ids = random.integers(3, 60, (5, 70), dtype=np.int32)
        alone, together = BlockRunner(model, step_tokens=1), BlockRunner(model, step_tokens=4096)
        x = together.embed(ids)
        one_by_one = np.concatenate([alone.block(0, x[n : n + 1]) for n in range(len(x))])
        np.testing.assert_allclose(together.block(0, x), one_by_one, rtol=0, atol=2e-5 * np.abs(x).max())
    assert Steps.of(512) == Steps(16, 128)
    assert Steps.of(20, step_tokens=1) == Steps(1, 20)


def test_a_file_in_place_of_memory(tmp_path: Path) -> None:
    with open_model(_case("qwen3").folder) as model:
        runner = BlockRunner(model, step_tokens=24)
        x = runner.embed(np.arange(60, dtype=np.int32).reshape(5, 12))
        kept = Activations(*x.shape, path=tmp_path / "hidden")
        kept.write(0, x)
        with runner.stretch(*layer_span(runner.program, 0, 1)) as stretch:
            stretch.run_all({"x": kept}, kept)
        assert np.array_equal(kept.read(0, 5), runner.block(0, x))
        kept.close()
    assert not list(tmp_path.iterdir())


def test_replaced_weights_are_used_and_forgotten() -> None:
    with open_model(_case("llama-tied").folder) as model:
        runner = BlockRunner(model, PatchedWeights(model.weights))
        x = runner.embed(np.arange(8, dtype=np.int32)[None])
        before = runner.block(1, x)
        name = "layers.1.mlp.down_proj"
        runner.weights.replace(name, np.zeros(model.weights.program.weights[name].shape, np.float32))
        assert not np.array_equal(runner.block(1, x), before)
        runner.weights.forget("layers.1.")
        assert np.array_equal(runner.block(1, x), before)
        with pytest.raises(UsageError, match="does not fit the program"):
            runner.weights.replace(name, np.zeros((3, 3), np.float32))


def test_inputs_of_another_shape_are_refused() -> None:
    with open_model(_case("llama-tied").folder) as model:
        runner = BlockRunner(model)
        with pytest.raises(UsageError, match="does not fit the program"):
            runner.block(0, np.zeros((1, 4, 7), np.float32))
        with (
            runner.stretch(*layer_span(runner.program, 0, 1)) as stretch,
            pytest.raises(UsageError, match="nothing"),
        ):
            stretch.run({"other": np.zeros((1, 4, 64), np.float32)})

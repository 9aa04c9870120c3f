"""Structured pruning: what goes, what the cuts leave, and that what is written is what was computed."""

from __future__ import annotations

import json

import numpy as np
import pytest

import edgellm
from edgellm.convert.prune import prune
from edgellm.convert.prune_recipe import PruneRecipe
from edgellm.convert.prune_survey import share_widths
from edgellm.convert.scores import Influence, channel_energy, keep_best, unit_scores
from edgellm.convert.sparsity import Sparsity
from edgellm.errors import ModelError, OutputError, UsageError
from edgellm.model import open_model
from tests.api.models import write_model
from tests.golden_models import GOLDEN_FOLDER

RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(0, 250, (4, 24)).astype(np.int32)
CONFIG = {"intermediate_size": 64, "num_hidden_layers": 3}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("prune") / "source", **CONFIG)


def pruned(source, out, ids=IDS, **recipe):
    with open_model(source) as opened:
        return prune(opened, PruneRecipe(**recipe), ids, out)


def logits(folder, ids):
    with edgellm.load(folder, backend="reference", context=64) as llm:
        return llm.logits(ids)


def test_scores_are_what_they_say():
    x, weight = RANDOM.standard_normal((50, 6)), RANDOM.standard_normal((5, 6)).astype(np.float32)
    hessian = x.T @ x
    energy = unit_scores(weight, hessian, 2)
    for unit in range(3):
        part = slice(2 * unit, 2 * unit + 2)
        assert energy[unit] == pytest.approx(np.square(x[:, part] @ weight[:, part].T).sum(), rel=1e-5)
    single = unit_scores(weight, hessian, 1)
    np.testing.assert_allclose(single, channel_energy(weight, hessian.diagonal() / 50) * 50, rtol=1e-6)
    # "loss" is the error that is left once the other units were re-fitted by brute force
    for width in (1, 2):
        loss = unit_scores(weight, hessian, width, "loss", ridge=1e-12)
        for unit in range(6 // width):
            keep = np.setdiff1d(np.arange(6), np.arange(unit * width, (unit + 1) * width))
            target = x @ weight.T
            best, *_ = np.linalg.lstsq(x[:, keep], target, rcond=None)
            assert loss[unit] == pytest.approx(np.square(target - x[:, keep] @ best).sum(), rel=1e-4)
    assert keep_best(np.array([1.0, 3.0, 3.0, 2.0]), 2).tolist() == [1, 2]
    with pytest.raises(UsageError, match="measure"):
        unit_scores(weight, hessian, 1, "guess")


def test_influence_of_a_block_that_does_nothing_is_zero():
    influence, opposite = Influence(), Influence()
    hidden = RANDOM.standard_normal((2, 3, 8)).astype(np.float32)
    influence.add(hidden, 2 * hidden)
    opposite.add(hidden, -hidden)
    assert influence.value == pytest.approx(0, abs=1e-6)
    assert opposite.value == pytest.approx(2)


def test_widths_go_where_the_energy_is():
    energies = [np.full(64, 1.0), np.r_[np.full(16, 9.0), np.full(48, 0.1)], np.full(64, 2.0)]
    shared = share_widths(energies, {0: 48, 1: 48, 2: 48}, 16)
    assert shared == {0: 64, 1: 16, 2: 64}
    assert sum(share_widths(energies, {0: 32, 2: 48}, 16).values()) == 80


def test_shapes_shrink_as_asked(source, tmp_path):
    seen = []
    with open_model(source) as opened:
        recipe = PruneRecipe(ffn=0.25, ffn_multiple=16, kv_groups=0.5, layers=1)
        report = prune(opened, recipe, IDS, tmp_path / "out", progress=lambda *state: seen.append(state))
    assert seen[-1][0] == seen[-1][1] > 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [config[key] for key in ("num_hidden_layers", "intermediate_size", "num_attention_heads")] == [2, 48, 2]
    assert (config["num_key_value_heads"], config["head_dim"]) == (1, 8)
    with open_model(tmp_path / "out") as opened:
        assert opened.weights.program.parameters == report.parameters < report.parameters_before
        assert opened.weights.unused() == []
    assert report.nbytes == (tmp_path / "out" / "model.safetensors").stat().st_size - _header(tmp_path / "out")
    assert len(report.influences) == 3
    assert report.removed_layers == (int(np.argmin(report.influences)),)
    for layer in report.layers:
        assert layer.attention.refit_error < layer.attention.error
        assert layer.mlp.refit_error < layer.mlp.error
    assert json.loads(json.dumps(report.as_dict()))["layers"][0]["channels"] == 48
    assert np.isfinite(logits(tmp_path / "out", IDS[0].tolist())).all()


def _header(folder):
    with open(folder / "model.safetensors", "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_the_refit_is_nearer_to_the_source(source, tmp_path):
    errors = []
    for name, fitted in (("without", "none"), ("with", "layer")):
        pruned(source, tmp_path / name, ffn=0.5, refit=fitted)
        errors.append(np.square(logits(tmp_path / name, IDS[0].tolist()) - logits(source, IDS[0].tolist())).mean())
    assert errors[1] < errors[0]


def test_a_refit_to_the_source_makes_up_for_a_layer_that_went(source, tmp_path):
    ids = RANDOM.integers(0, 250, (16, 48)).astype(np.int32)
    errors = {}
    for fitted in ("none", "layer", "source"):
        report = pruned(source, tmp_path / fitted, ids=ids, layer_ids=(1,), refit=fitted)
        errors[fitted] = np.square(logits(tmp_path / fitted, ids[0].tolist()) - logits(source, ids[0].tolist())).mean()
    assert errors["none"] == errors["layer"]  # no linear lost an input
    assert errors["source"] < 0.9 * errors["none"]
    assert all(layer.mlp.refit_error < layer.mlp.error for layer in report.layers)


def test_a_refit_to_the_source_changes_nothing_where_nothing_went(source, tmp_path):
    pruned(source, tmp_path / "out", refit="source")
    expected, found = (logits(folder, IDS[0].tolist()) for folder in (source, tmp_path / "out"))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_never_counts_goes_without_a_trace(tmp_path):
    """Channels and heads whose outputs nobody reads: the pruned model gives the logits of its source."""
    from safetensors.numpy import load_file, save_file

    source = write_model(tmp_path / "source", **CONFIG)
    tensors = load_file(source / "model.safetensors")
    dead = RANDOM.permutation(64)[:32]
    for layer in range(3):
        tensors[f"model.layers.{layer}.mlp.down_proj.weight"][:, dead] = 0
        tensors[f"model.layers.{layer}.self_attn.o_proj.weight"][:, 16 * (layer % 2) : 16 * (layer % 2) + 16] = 0
    tensors["model.layers.1.mlp.down_proj.weight"][:] = 0
    tensors["model.layers.1.self_attn.o_proj.weight"][:] = 0
    save_file(tensors, source / "model.safetensors")
    report = pruned(source, tmp_path / "out", ffn=0.5, kv_groups=0.5, layers=1)
    assert report.removed_layers == (1,)
    assert [layer.groups.tolist() for layer in report.layers] == [[1], [1]]
    assert all(not np.isin(layer.channels, dead).any() for layer in report.layers)
    expected, found = (logits(folder, IDS[0].tolist()) for folder in (source, tmp_path / "out"))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_widths_by_layer_run(source, tmp_path):
    report = pruned(source, tmp_path / "out", ffn=0.5, ffn_multiple=8, ffn_by_layer=True)
    widths = json.loads((tmp_path / "out" / "config.json").read_text())["intermediate_size"]
    assert sum(widths if isinstance(widths, list) else [widths] * 3) == 96
    assert isinstance(widths, list) == bool(report.notes)
    assert np.isfinite(logits(tmp_path / "out", IDS[0].tolist())).all()


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "smollm3", "phi3", "llama-bias", "qwen2-mixed-window", "granite"])
def test_other_architectures_lose_a_layer_a_group_and_channels(name, tmp_path):
    source = GOLDEN_FOLDER / name
    with open_model(source) as opened:
        config = opened.config
        ids = RANDOM.integers(0, config.vocab_size, (2, 20)).astype(np.int32)
        groups = 0.5 if config.num_key_value_heads > 1 else 0.0
        recipe = PruneRecipe(ffn=0.5, ffn_multiple=8, kv_groups=groups, layer_ids=(0,))
        prune(opened, recipe, ids, tmp_path / "out")
        with open_model(tmp_path / "out") as out:
            assert out.config.layer_windows == config.layer_windows[1:]
            assert out.config.layer_ropes == config.layer_ropes[1:]
            assert out.weights.unused() == []
            assert out.config.num_key_value_heads == recipe.kept_groups(config)


def test_hidden_states_in_a_file_give_the_same(source, tmp_path):
    pruned(source, tmp_path / "memory", ffn=0.5)
    with open_model(source) as opened:
        prune(opened, PruneRecipe(ffn=0.5), IDS, tmp_path / "file", max_memory=1)
    data = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("memory", "file")]
    assert data[0] == data[1]
    assert {path.name for path in tmp_path.iterdir()} == {"memory", "file"}


def test_what_cannot_be_pruned_is_said(source, tmp_path):
    with pytest.raises(UsageError, match=r"prune\.ffn"):
        PruneRecipe(ffn=1.0)
    with pytest.raises(UsageError, match="no layer would be left"):
        pruned(source, tmp_path / "out", layers=3)
    with pytest.raises(UsageError, match="no such layer"):
        pruned(source, tmp_path / "out", layer_ids=(3,))
    with pytest.raises(UsageError, match="no such token id"):
        pruned(source, tmp_path / "out", ids=IDS + 100, ffn=0.5)
    with pytest.raises(UsageError, match="norm runs over all heads"), open_model(GOLDEN_FOLDER / "olmo2") as opened:
        prune(opened, PruneRecipe(kv_groups=0.5), IDS, tmp_path / "out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        pruned(source, tmp_path / "taken", ffn=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_quantized_source_is_refused(source, tmp_path, monkeypatch):
    with open_model(source) as opened:
        object.__setattr__(opened, "quantization", object())
        with pytest.raises(ModelError, match="is quantized"):
            prune(opened, PruneRecipe(ffn=0.5), IDS, tmp_path / "out")


@pytest.mark.parametrize("name", ["llama-gqa-head-dim", "phi3"])
def test_zeros_for_research_stay_in_the_shapes_of_the_source(name, tmp_path):
    with open_model(GOLDEN_FOLDER / name) as opened:
        ids = RANDOM.integers(0, opened.config.vocab_size, (2, 20)).astype(np.int32)
        report = prune(opened, PruneRecipe(sparsity=Sparsity("wanda", pattern=(2, 4))), ids, tmp_path / "out")
        with open_model(tmp_path / "out") as out:
            assert out.config == opened.config
            weight = out.weights.linear("layers.0.mlp.gate_proj")
            assert ((weight.reshape(-1, 4) != 0).sum(axis=1) <= 2).all()
            assert weight.any()
    assert report.parameters == report.parameters_before
    assert "zeros" in report.notes[0]
    with pytest.raises(UsageError, match="exclude each other"):
        PruneRecipe(sparsity=Sparsity(), ffn=0.5)

"""Names and shapes: what a config needs against what a checkpoint holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgellm.errors import ModelError
from edgellm.model import build_program, open_model
from edgellm.model.config import read_config
from tests.model.configs import GOOD, files


def tensors_of(config: dict, prefix: str = "model.") -> dict[str, np.ndarray]:
    """Random float32 tensors that fit a config, by the file's names."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, spec in build_program(read_config(files(config))).weights.items():
        if name == "lm_head" and config.get("tie_word_embeddings"):
            continue
        stem = name if name == "lm_head" else prefix + name
        tensors[f"{stem}.weight"] = rng.standard_normal(spec.shape, np.float32)
        if spec.bias:
            tensors[f"{stem}.bias"] = rng.standard_normal(spec.shape[:1], np.float32)
    return tensors


def write(folder: Path, config: dict, tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    tensors = tensors_of(GOOD)
    del tensors[name]
    with pytest.raises(ModelError, match=f"{name}: .*missing|{name}.* missing"):
        open_model(write(tmp_path, GOOD, tensors))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.norm.weight", (63,)),
        ("model.layers.0.self_attn.k_proj.weight", (64, 64)),
        ("model.embed_tokens.weight", (99, 64)),
        ("model.embed_tokens.weight", (6400,)),
        ("lm_head.weight", (100, 32)),
    ],
    ids=str,
)
def test_a_shape_that_differs_from_the_config_is_named(name: str, shape: tuple, tmp_path: Path) -> None:
    tensors = tensors_of(GOOD) | {name: np.ones(shape, np.float32)}
    with pytest.raises(ModelError, match=rf"model\.safetensors: {name}: shape differs") as caught:
        open_model(write(tmp_path, GOOD, tensors))
    assert caught.value.found == list(shape)


def test_sizes_far_beyond_the_file_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    tensors = tensors_of(GOOD)
    for key, value in [("num_hidden_layers", 1024), ("hidden_size", 131_072), ("vocab_size", 1 << 22)]:
        with pytest.raises(ModelError, match=r"missing|shape differs"):
            open_model(write(tmp_path, {**GOOD, key: value}, tensors))


def test_a_padded_embedding_wins_over_vocab_size(tmp_path: Path) -> None:
    tensors = tensors_of({**GOOD, "vocab_size": 128})
    with open_model(write(tmp_path, GOOD, tensors)) as model:
        assert model.config.vocab_size == 128
        assert any("padded to 128 rows" in note for note in model.notes)


@pytest.mark.parametrize("prefix", ["model.", "", "language_model.model."])
def test_decoders_inside_wrappers_are_found(prefix: str, tmp_path: Path) -> None:
    config = {**GOOD, "tie_word_embeddings": True}
    with open_model(write(tmp_path, config, tensors_of(config, prefix))) as model:
        assert model.weights.lm_head_is_embedding
        assert model.weights.unused() == []
        assert model.weights.linear("layers.1.mlp.down_proj").shape == (64, 96)


def test_an_lm_head_of_its_own_counts_although_the_config_ties(tmp_path: Path) -> None:
    config = {**GOOD, "tie_word_embeddings": True}
    folder = write(tmp_path, config, tensors_of(GOOD))
    with open_model(folder) as model:
        assert not model.weights.lm_head_is_embedding
        expected = load_file(folder / "model.safetensors")["lm_head.weight"]
        np.testing.assert_array_equal(model.weights.linear("lm_head"), expected)


def test_fused_tensors_are_cut_and_split_ones_are_taken_as_they_are(tmp_path: Path) -> None:
    config = {**GOOD, "model_type": "phi3"}
    parts = tensors_of(config)
    at = "model.layers.0."
    fused = {key: value for key, value in parts.items() if "_proj" not in key or "o_proj" in key or "down" in key}
    for layer in range(2):
        at = f"model.layers.{layer}."
        qkv = [parts[f"{at}self_attn.{name}_proj.weight"] for name in "qkv"]
        fused[f"{at}self_attn.qkv_proj.weight"] = np.concatenate(qkv)
        for name in ("gate", "up"):  # as GPTQModel writes them
            fused[f"{at}mlp.{name}_proj.weight"] = parts[f"{at}mlp.{name}_proj.weight"]
    with open_model(write(tmp_path, config, fused)) as model:
        assert model.weights.unused() == []
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj"):
            np.testing.assert_array_equal(model.weights.linear(f"layers.1.{name}"), parts[f"{at}{name}.weight"])


def test_a_bias_that_the_architecture_has_not_is_read_all_the_same(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.bias"
    tensors = tensors_of(GOOD) | {name: np.arange(96, dtype=np.float32)}
    with open_model(write(tmp_path, GOOD, tensors)) as model:
        np.testing.assert_array_equal(model.weights.bias("layers.0.mlp.up_proj"), tensors[name])
        assert model.weights.bias("layers.1.mlp.up_proj") is None


def test_tensors_nobody_reads_are_noted(tmp_path: Path) -> None:
    extra = {"model.vision.weight": np.ones(3, np.float32), "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8)}
    with open_model(write(tmp_path, GOOD, tensors_of(GOOD) | extra)) as model:
        assert model.weights.unused() == ["model.vision.weight"]
        assert any("1 tensors are not used" in note for note in model.notes)

"""Synthetic checkpoints: real shapes, sane numbers, files that load and run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgellm.backends.interface import Batch
from edgellm.backends.slots import SlotState
from edgellm.errors import OutputError, UsageError
from edgellm.formats import QuantizedTensor
from edgellm.model import open_model
from edgellm.text import load_tokenizer
from tests.backends.running import geometry, load, logits_of
from tools.make_synthetic import MODELS, Blocks, Storage, main, make_synthetic, model_config, tensors

TINY = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1100,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
#: As published; the embedding counts once where it is the output layer too.
PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "qwen2.5-0.5b": 494_032_768,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2.5-1.5b": 1_543_714_304,
    "llama-2-7b": 6_738_415_616,
}
STORAGES = [
    Storage(group_size=32),
    Storage(group_size=32, sym=False),
    Storage(group_size=32, desc_act=True),
    Storage(bits=8, group_size=-1),
    Storage("awq", group_size=32, sym=False),
    Storage("awq", group_size=128),
    Storage("float16"),
]


@pytest.fixture(scope="module")
def blocks():
    return Blocks(4, 0)


@pytest.mark.parametrize("name", MODELS)
def test_as_many_parameters_as_the_real_model(name, blocks):
    made = tensors(model_config(name), Storage("float16"), blocks)
    assert sum(int(np.prod(source.shape, dtype=object)) for source in made.values()) == PARAMETERS[name]


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_it_loads_and_runs(storage, tmp_path):
    folder = make_synthetic(TINY, tmp_path / "model", storage, layers=2)
    with open_model(folder) as model:
        assert model.config.num_hidden_layers == 2
        assert not [note for note in model.notes if "not used" in note]
        weight = model.weights.linear("layers.1.mlp.down_proj")
        if storage.layout == "float16":
            values = weight
            assert model.quantization is None
        else:
            assert isinstance(weight, QuantizedTensor)
            assert (weight.permutation is not None) == storage.desc_act
            assert (np.ptp(weight.zeros) > 0) != storage.sym
            assert np.ptp(weight.scales) > 0
            values = weight.dequantize()
        assert values.std() * 160**0.5 == pytest.approx(1.0, abs=0.1)
        assert abs(values.mean()) < 0.1 * values.std()
    logits = logits_of(load(folder), [0, 5, 700, 3])
    assert logits.shape == (4, 1100)
    assert np.isfinite(logits).all()
    assert 0.3 < logits.std() < 3


def test_activations_neither_explode_nor_vanish(tmp_path):
    folder = make_synthetic(TINY, tmp_path / "model", Storage(group_size=32))
    runner = load(folder)
    spread = []
    cache = runner.new_cache(geometry(runner, 8, 8), 1)
    runner.run(
        cache,
        Batch.of([(SlotState(0), list(range(3, 11)), "all")]),
        lambda op, buffers: spread.append(max(float(buffer.std()) for buffer in buffers.values())),
    )
    assert 0.05 < spread[-1] < 20
    assert max(spread) < 20


def test_text_goes_in_and_comes_out(tmp_path):
    folder = make_synthetic(TINY, tmp_path / "model", STORAGES[0], layers=1)
    with open_model(folder) as model:
        tokenizer = load_tokenizer(model.side_files, vocab_size=1100)
    for text in ("The quick brown fox; Zürich 東京 🙂", "plain letters make pairs"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
    assert len(tokenizer.encode("plain letters make pairs")) < 18
    assert all(isinstance(tokenizer.decode([token]), str) for token in range(3, 1100))


def test_it_says_that_it_is_synthetic(tmp_path):
    folder = make_synthetic(TINY, tmp_path / "model", STORAGES[0], layers=1, tokenizer=False, name="tiny")
    config = json.loads((folder / "config.json").read_text())
    assert config["synthetic"] is True
    assert config["_name_or_path"] == "synthetic/tiny"
    with open_model(folder) as model:
        assert "random weights" in model.checkpoint.metadata["synthetic"]
    assert not (folder / "tokenizer.json").exists()


def test_the_same_seed_gives_the_same_file(tmp_path):
    files = []
    for number, seed in enumerate((1, 1, 2)):
        make_synthetic(TINY, tmp_path / str(number), STORAGES[0], layers=1, seed=seed)
        files.append((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0][-4000:] != files[2][-4000:]


def test_what_is_not_written(tmp_path):
    for storage in (Storage("gguf"), Storage(bits=3), Storage("awq", bits=8), Storage("awq", desc_act=True)):
        with pytest.raises(UsageError):
            make_synthetic(TINY, tmp_path / "model", storage)
    with pytest.raises(UsageError, match="group_size"):
        make_synthetic(TINY, tmp_path / "model", Storage(group_size=0))
    with pytest.raises(UsageError, match="vocab_size"):
        make_synthetic({**TINY, "vocab_size": 200}, tmp_path / "model", Storage())
    with pytest.raises(UsageError, match="fill words"):
        make_synthetic({**TINY, "intermediate_size": 161}, tmp_path / "model", Storage())
    with pytest.raises(UsageError, match="layers"):
        make_synthetic(TINY, tmp_path / "model", Storage(), layers=0)
    with pytest.raises(UsageError, match="mlp_bias"):
        make_synthetic({**TINY, "mlp_bias": True}, tmp_path / "model", Storage())
    assert not (tmp_path / "model").exists()
    make_synthetic(TINY, tmp_path / "model", STORAGES[0], layers=1)
    with pytest.raises(OutputError):
        make_synthetic(TINY, tmp_path / "model", STORAGES[0], layers=1)
    make_synthetic(TINY, tmp_path / "model", STORAGES[0], layers=1, overwrite=True)


def test_the_command(tmp_path, capsys):
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    arguments = [str(tmp_path / "tiny.json"), str(tmp_path / "model"), "--layers", "1", "--format", "awq", "--asym"]
    assert main(arguments) == 0
    assert "wrote" in capsys.readouterr().out
    assert main(arguments) == OutputError.exit_code
    assert main(["gpt-9", str(tmp_path / "other")]) == UsageError.exit_code
    assert "llama-3.2-1b" in capsys.readouterr().err

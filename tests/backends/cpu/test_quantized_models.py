"""Whole models with quantized weights on the CPU backend, against the reference, as files of other tools store them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.backends.cpu import team
from edgellm.backends.cpu.backend import CpuBackend
from edgellm.backends.interface import Batch, StepStopped
from edgellm.backends.slots import SlotState
from edgellm.model import fuse, open_model
from tests.backends.cpu.kernels import WITHOUT_JIT, nmse
from tests.backends.running import geometry, load, logits_of, prefill
from tools.make_synthetic import Storage, make_synthetic

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 48 if WITHOUT_JIT else 96,
    "intermediate_size": 72 if WITHOUT_JIT else 160,
    "num_hidden_layers": 1 if WITHOUT_JIT else 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "vocab_size": 50 if WITHOUT_JIT else 515,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
STORAGES = {
    "gptq": Storage(group_size=32),
    "gptq act-order": Storage(group_size=16, sym=False, desc_act=True),
    "gptq 8 bits, whole rows": Storage(bits=8, group_size=-1),
    "awq": Storage("awq", group_size=32, sym=False),
    "float16": Storage("float16"),
}
TOKENS = 6 if WITHOUT_JIT else 70


@pytest.fixture(scope="module", params=STORAGES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights; its name says how they are stored."""
    made = tmp_path_factory.mktemp("models") / request.param.replace(" ", "-")
    # groups of a layer must come out even in the packed words of AWQ and act-order alike
    config = {**CONFIG, "intermediate_size": 160} if "awq" in request.param or "act" in request.param else CONFIG
    return make_synthetic({**config}, made, STORAGES[request.param], tokenizer=False)


def load_cpu(folder: Path, **options):
    with open_model(folder) as model:
        return CpuBackend().load(fuse(model.weights.program), model.weights, threads=2, **options)


def ids_of(count: int = TOKENS) -> list[int]:
    return np.random.default_rng(7).integers(3, CONFIG["vocab_size"], count).tolist()


def test_logits_are_the_references(folder: Path) -> None:
    expected = logits_of(load(folder), ids_of())
    runner = load_cpu(folder, lm_head="keep", activations="int16")
    # 16 bits of activations and float16 weights are what is left; random layers pass errors on unattenuated
    assert nmse(logits_of(runner, ids_of(), chunk=32), expected) < 1e-5
    assert nmse(logits_of(runner, ids_of(3), chunk=1), expected[:3]) < 1e-5
    runner.close()


def test_the_defaults_stay_near_the_reference(folder: Path) -> None:
    expected = logits_of(load(folder), ids_of())
    runner = load_cpu(folder)
    assert nmse(logits_of(runner, ids_of(), chunk=32, dtype="float16"), expected) < 5e-3
    runner.close()


def give_up(runner, cache, batch: Batch) -> None:
    """Run a step that nobody wants; one that is over before anybody asks is run again."""
    while True:
        runner.run(cache, batch, stopped=lambda: True)


def test_a_step_that_was_given_up_leaves_its_slot_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "_WAIT_SECONDS", 1e-6)
    runner = load_cpu(folder)
    ids = ids_of(24)
    cache = runner.new_cache(geometry(runner, 64, 24, "float16"), 2)
    states = [prefill(runner, cache, SlotState(slot), ids[:2])[1] for slot in (0, 1)]
    batches = [Batch.of([(state, ids[2:], "last")]) for state in states]
    with pytest.raises(StepStopped):
        give_up(runner, cache, batches[0])
    found, expected = (runner.run(cache, batch) for batch in batches)
    np.testing.assert_array_equal(found, expected)
    runner.close()

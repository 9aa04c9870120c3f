"""Block-by-block repair, least squares and the matching that it begins with."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.convert.distill.heal import Healer
from edgellm.convert.distill.matching import match_channels, match_layers
from edgellm.convert.distill.reduction import Reduction
from edgellm.convert.distill.settings import Settings
from edgellm.convert.distill.trainable import Scales
from tests.convert.distill.models import golden, logits_of, network_of, random_rows, read
from tests.convert.distill.test_reduce import smaller

TOKENS = 16


def healed(name: str, reduction: Reduction, heal: str, layers: tuple[int, ...], steps: int = 20):
    teacher = read(golden(name))
    rows = random_rows(teacher, 24, TOKENS + 1)
    student = smaller(teacher, reduction, rows[:, :-1])
    before = logits_of(student, rows[:, :-1])
    settings = Settings(length=TOKENS, heal=heal, heal_steps=steps, micro_batch=4, heal_learning_rate=5e-3)
    networks = [network_of(model, TOKENS) for model in (student, teacher)]
    channels = np.arange(teacher.program.config.hidden_size)
    found = Healer(*networks, layers, channels, rows, settings).run()
    expected = logits_of(teacher, rows[:, :-1])
    after = logits_of(student, rows[:, :-1])
    return found, np.square(before - expected).mean(), np.square(after - expected).mean()


@pytest.mark.parametrize("name", ["llama-gqa-head-dim", "qwen3", "phi3", "granite"])
@pytest.mark.parametrize("heal", ["lstsq", "scales", "weights"])
def test_a_narrower_student_comes_nearer_to_its_teacher(name: str, heal: str):
    config = read(golden(name)).program.config
    reduction = Reduction(intermediate_size=config.intermediate_size // 2)
    found, before, after = healed(name, reduction, heal, tuple(range(config.num_hidden_layers)))
    assert len(found) == config.num_hidden_layers
    for block in found:
        assert block.error_after <= block.error_after_least_squares < block.error_before
    assert after < before


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_norms_behind_the_branches_leave_it_to_gradient_steps(name: str):
    config = read(golden(name)).program.config
    reduction = Reduction(intermediate_size=config.intermediate_size // 2)
    found, before, after = healed(name, reduction, "weights", tuple(range(config.num_hidden_layers)))
    assert all(block.error_after_least_squares == block.error_before for block in found)
    assert all(block.error_after < block.error_before for block in found)
    assert after < before


def test_a_missing_layer_is_made_up_for():
    layers = tuple(range(read(golden("llama-mha")).program.config.num_hidden_layers))[:-1]
    found, before, after = healed("llama-mha", Reduction(layers=layers), "lstsq", layers)
    assert found[-1].error_after < found[-1].error_before
    assert after < before


def test_scales_are_the_weights_factors():
    model = read(golden("llama-tied"))
    names = model.parameters.of_layer(0)
    name = "layers.0.mlp.up_proj"
    base = model.parameters[name].copy()
    scales = Scales(model.parameters, names)
    scales.arrays[name][:] = 2
    scales.apply()
    np.testing.assert_array_equal(model.parameters[name], 2 * base)
    grads = scales.gradients({key: np.ones_like(model.parameters.arrays[key]) for key in names})
    np.testing.assert_allclose(grads[name], base.sum(axis=1), rtol=1e-4, atol=1e-5)
    assert grads["layers.0.input_layernorm"].shape == model.parameters["layers.0.input_layernorm"].shape


@pytest.mark.parametrize("layers", [(0, 2), (1, 3), (2,), (0, 1, 3)])
def test_layers_and_channels_are_recognized(layers: tuple[int, ...]):
    teacher = read(golden("qwen2-mixed-window"))
    rows = random_rows(teacher, 4, 8)
    size = teacher.program.config.hidden_size
    student = smaller(teacher, Reduction(layers=layers, hidden_size=size - 8), rows)
    channels = match_channels(student, teacher)
    assert channels is not None
    np.testing.assert_array_equal(student.parameters["embed_tokens"], teacher.parameters["embed_tokens"][:, channels])
    assert match_layers(student, teacher, channels) == layers


def test_strangers_are_not_matched():
    teacher, other = read(golden("llama-mha")), read(golden("llama-mha"))
    embedding = other.parameters.arrays["embed_tokens"]
    other.parameters.arrays["embed_tokens"] = np.random.default_rng(0).normal(size=embedding[:, 2:].shape)
    assert match_channels(other, teacher) is None

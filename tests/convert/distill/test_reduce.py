"""Smaller models: what carries nothing is left out without a trace, and what is written is read again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from edgellm.convert.distill.output import write_model
from edgellm.convert.distill.reduce import Model, reduce
from edgellm.convert.distill.reduction import Reduction, choose, choose_layers, collect, sketch
from edgellm.convert.distill.student_config import read_values
from edgellm.errors import NumericalError, UsageError
from edgellm.model import open_model
from edgellm.sidefiles import MemoryFiles
from tests.backends.running import load, relative_error
from tests.backends.running import logits_of as reference_logits
from tests.convert.distill.models import golden, logits_of, network_of, random_rows, read
from tests.golden_models import GoldenCase, cases

ROWS, TOKENS = 3, 20


def smaller(model: Model, reduction: Reduction, rows: np.ndarray) -> Model:
    found = collect(network_of(model, rows.shape[1]), rows, 2)
    return reduce(model, choose(model.program, model.parameters, reduction, found), found, "config.json")


@pytest.mark.parametrize("case", cases(), ids=str)
def test_keeping_all_changes_nothing(case: GoldenCase):
    model = read(case)
    rows = random_rows(model, ROWS, TOKENS)
    config = model.program.config
    same = Reduction(config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads)
    made = smaller(model, same, rows)
    assert relative_error(logits_of(made, rows), logits_of(model, rows)) < 1e-5


@pytest.mark.parametrize("case", cases(), ids=str)
def test_channels_without_weight_leave_without_a_trace(case: GoldenCase):
    """FFN channels that nobody reads, and attention groups whose output is zero."""
    model = read(case)
    config, arrays = model.program.config, model.parameters.arrays
    rows = random_rows(model, ROWS, TOKENS)
    each = config.head_dim * config.num_attention_heads // config.num_key_value_heads
    for layer in range(config.num_hidden_layers):
        arrays[f"layers.{layer}.mlp.down_proj"][:, [0, 5]] = 0
        if config.num_key_value_heads > 1 and config.qk_norm != "full":
            arrays[f"layers.{layer}.self_attn.o_proj"][:, :each] = 0
    heads = config.num_attention_heads
    if config.num_key_value_heads > 1 and config.qk_norm != "full":
        heads -= heads // config.num_key_value_heads
    made = smaller(model, Reduction(None, None, config.intermediate_size - 2, heads), rows)
    assert made.program.config.intermediate_size == config.intermediate_size - 2
    assert made.program.config.num_attention_heads == heads
    assert relative_error(logits_of(made, rows), logits_of(model, rows)) < 1e-5


@pytest.mark.parametrize("name", ["llama-gqa-head-dim", "llama-tied", "qwen2", "qwen3", "gemma", "granite", "phi3"])
def test_hidden_channels_that_stay_zero_leave_without_a_trace(name: str):
    model = read(golden(name))
    size = model.program.config.hidden_size
    dropped = [1, 4, 7, size - 1]
    for op in model.program.ops:
        for output, weight in zip(op.outputs, op.weights, strict=False):
            if op.kind == "embed":
                model.parameters[weight][:, dropped] = 0
            elif op.kind == "linear" and output == "y":
                model.parameters[weight][dropped] = 0
                if model.parameters.bias(weight) is not None:
                    model.parameters.bias(weight)[dropped] = 0
    rows = random_rows(model, ROWS, TOKENS)
    made = smaller(model, Reduction(hidden_size=size - 4), rows)
    assert made.program.config.hidden_size == size - 4
    assert relative_error(logits_of(made, rows), logits_of(model, rows)) < 2e-4  # rms_norm_eps counts for more


@pytest.mark.parametrize("case", cases(), ids=str)
def test_fewer_layers_attend_as_they_did(case: GoldenCase):
    model = read(case)
    config = model.program.config
    rows = random_rows(model, ROWS, TOKENS)
    made = smaller(model, Reduction(layers=(config.num_hidden_layers - 1,)), rows)
    assert made.program.config.layer_windows == config.layer_windows[-1:]
    assert made.program.config.layer_ropes == config.layer_ropes[-1:]
    arrays = made.parameters.arrays
    last = f"layers.{config.num_hidden_layers - 1}.mlp.down_proj"
    np.testing.assert_array_equal(arrays["layers.0.mlp.down_proj"], model.parameters[last])


@pytest.mark.parametrize("case", cases(), ids=str)
def test_what_is_written_is_the_model(case: GoldenCase, tmp_path):
    model = read(case)
    with open_model(case.folder) as opened:
        write_model(model, opened.side_files, tmp_path / "out", "float32", {}, overwrite=False)
    with open_model(tmp_path / "out") as opened:
        assert opened.weights.unused() == []
    ids = case.reference()["input_ids_1"]
    expected = reference_logits(load(case.folder), ids)
    np.testing.assert_array_equal(reference_logits(load(tmp_path / "out"), ids), expected)


def test_weights_too_large_for_the_dtype_are_refused(tmp_path):
    model = read(golden("llama-tied"))
    model.parameters["norm"][0] = 1e5
    files = MemoryFiles({}, "nowhere")
    with pytest.raises(NumericalError, match="too large"):
        write_model(model, files, tmp_path / "out", "float16", {}, overwrite=False)
    assert list(tmp_path.iterdir()) == []
    write_model(model, files, tmp_path / "out", "bfloat16", {}, overwrite=False)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_layers_are_spread_or_named():
    assert choose_layers(8, 4) == (0, 2, 5, 7)
    assert choose_layers(5, 1) == (0,)
    assert choose_layers(5, (1, 3)) == (1, 3)
    for wrong in (0, 6, (3, 1), (0, 5), (1, 1), ()):
        with pytest.raises(UsageError, match="--layers"):
            choose_layers(5, wrong)


@pytest.mark.parametrize(
    ("reduction", "named"),
    [
        (Reduction(hidden_size=10**6), "--hidden-size"),
        (Reduction(intermediate_size=10**6), "--intermediate-size"),
        (Reduction(num_attention_heads=3), "--heads"),
        (Reduction(layers=99), "--layers"),
    ],
)
def test_sizes_that_cannot_be_are_refused(reduction: Reduction, named: str):
    config = replace(read(golden("llama-gqa-head-dim")).program.config, num_attention_heads=8, num_key_value_heads=4)
    with pytest.raises(UsageError, match=named):
        sketch(config, reduction)


def test_a_config_keeps_what_it_said_of_the_kept_layers():
    model = read(golden("smollm3"))
    rows = random_rows(model, 2, 8)
    layers = model.program.config.num_hidden_layers
    made = smaller(model, Reduction(layers=tuple(range(1, layers))), rows)
    again = read_values(made.values, "config.json")
    assert again.layer_ropes == model.program.config.layer_ropes[1:]

"""config.json and generation_config.json: every value has a range, every refusal names file and key (CF1 to CF12)."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import ModelError
from edgellm.model.config import read_config
from edgellm.model.generation import read_generation_defaults
from edgellm.model.program import build_program
from edgellm.sidefiles import MemoryFiles
from tests.golden_models import cases
from tests.model.configs import GOOD, LLAMA3, files, read

SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "intermediate_size",
    "head_dim",
    "max_position_embeddings",
)
REQUIRED = tuple(key for key in SIZES if key not in ("num_key_value_heads", "head_dim"))


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "4096", 2**31, 2**63, 10**29], ids=repr)
def test_sizes_out_of_range_are_named(key: str, value) -> None:
    with pytest.raises(ModelError, match=rf"model:config\.json: {key}: .*allowed: an integer from 1 to") as caught:
        read(**{key: value})
    assert caught.value.exit_code == 65


@pytest.mark.parametrize("key", REQUIRED)
@pytest.mark.parametrize("value", [..., None], ids=["missing", "null"])
def test_missing_sizes_are_named(key: str, value) -> None:
    with pytest.raises(ModelError, match=f"{key}: required value is missing"):
        read(**{key: value})


def test_a_number_of_three_thousand_digits_is_refused() -> None:
    text = json.dumps(GOOD).replace('"vocab_size": 100', '"vocab_size": 1' + "0" * 3000)
    with pytest.raises(ModelError, match=r"config\.json: JSON integer too long"):
        read_config(files(text))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads: must divide num_attention_heads"),
        ({"hidden_size": 66}, "hidden_size: does not divide into heads"),
        ({"head_dim": 15}, "head_dim: rotary positions need an even"),
        ({"hidden_size": 60}, "head_dim: rotary positions need an even"),
        ({"rope_theta": 0}, "rope_theta: value out of range"),
        ({"rope_theta": -1.0}, "rope_theta: value out of range"),
        ({"rope_scaling": {"type": "magic", "factor": 2.0}}, r"rope_scaling\.type: not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, r"rope_scaling\.rope_type: not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, r"rope_scaling\.factor: value out of range"),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor: required value is missing"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, r"rope_scaling\.high_freq_factor: must be above"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, r"rope_scaling\.low_freq_factor: required"),
        ({"rope_scaling": [1]}, "rope_scaling: not an object"),
        ({"rope_parameters": {"rope_type": "nope"}}, r"rope_parameters\.rope_type: not supported"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps: value out of range"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps: value out of range"),
        ({"model_type": "mamba"}, "model_type: architecture not supported; found 'mamba', allowed: gemma"),
        ({"model_type": None}, "model_type: required value is missing"),
        ({"architectures": [1]}, "architectures: not a list of names"),
        ({"hidden_act": "relu"}, "hidden_act: not supported"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: not a boolean"),
        ({"attention_bias": "no"}, "attention_bias: not a boolean"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window: value out of range"),
        ({"model_type": "mistral", "sliding_window": -5}, "sliding_window: value out of range"),
        ({"model_type": "mistral", "sliding_window": 257}, "sliding_window: value out of range"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention"]},
            "layer_types: not such a list",
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0},
            "sliding_window: layers slide but the window is missing",
        ),
        ({"model_type": "smollm3", "no_rope_layers": [1, 2]}, "no_rope_layers: not such a list"),
    ],
    ids=str,
)
def test_contradictions_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(**changes)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "file is empty"),
        (b"{", "not JSON"),
        (b"[]", "must be an object"),
        (json.dumps(GOOD).encode("utf-16"), "not UTF-8"),
        (b'{"model_type": "llama", "model_type": "qwen2"}', "same key twice"),
        (b'{"rope_theta": NaN}', "not finite"),
        (b'{"rope_theta": 1e999}', "out of range"),
        (b'{"a": "\\ud800"}', "lone surrogate"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b" " * (5 << 20), "too large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_not_sound_json(data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=rf"model:config\.json: .*{message}"):
        read_config(files(data))


def test_a_byte_order_mark_is_accepted() -> None:
    assert read_config(files(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())).hidden_size == 64


def test_no_config_says_where_it_should_be() -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing.*Keep config\.json and the tokenizer"):
        read_config(MemoryFiles({}, "model"))


def test_defaults_follow_transformers() -> None:
    config = read(num_key_value_heads=..., rms_norm_eps=..., rope_theta=...)
    assert config.num_key_value_heads == 4
    assert config.head_dim == 16
    assert config.rms_norm_eps == 1e-6
    assert config.layer_ropes[0].theta == 10000.0
    assert not config.tie_word_embeddings
    assert read(model_type="gemma").tie_word_embeddings


def test_oddities_are_noted_not_obeyed() -> None:
    config = read(auto_map={"AutoModel": "evil.Model"}, rms_norm_eps=0.0)
    assert any("never runs code" in note for note in config.notes)
    assert any("rms_norm_eps is 0" in note for note in config.notes)


def test_qwen2_slides_only_above_max_window_layers_and_only_if_told() -> None:
    slides = {"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 1}
    assert read(**slides).layer_windows == (None, None)
    assert read(**slides, use_sliding_window=True).layer_windows == (None, 8)
    types = ["sliding_attention", "full_attention"]
    assert read(**slides, use_sliding_window=True, layer_types=types).layer_windows == (8, None)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_both_spellings_of_transformers_read_alike(case) -> None:
    both = [(case.folder / "config.json").read_bytes(), case.other_config.read_bytes()]
    assert read_config(files(both[0])) == read_config(files(both[1]))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", 100),
        ("eos_token_id", -1),
        ("eos_token_id", [1, [2]]),
        ("eos_token_id", [1] * 65),
        ("eos_token_id", True),
        ("temperature", -1),
        ("temperature", 1e9),
        ("top_p", 0),
        ("top_p", 2),
        ("top_k", -5),
        ("repetition_penalty", 0),
        ("min_p", 1.5),
        ("do_sample", "yes"),
    ],
    ids=str,
)
def test_generation_defaults_out_of_range_are_named(key: str, value) -> None:
    with pytest.raises(ModelError, match=rf"generation_config\.json: {key}: "):
        read_generation_defaults(files(GOOD, generation_config={key: value}), read())


def test_generation_defaults_fall_back_to_the_config() -> None:
    config = {**GOOD, "eos_token_id": [7, 9], "bos_token_id": 3}
    alone = read_generation_defaults(files(config), read())
    assert (alone.eos_token_ids, alone.bos_token_id, alone.do_sample) == ((7, 9), 3, False)
    own = read_generation_defaults(files(config, generation_config={"eos_token_id": 5, "top_k": 20}), read())
    assert (own.eos_token_ids, own.bos_token_id, own.top_k, own.temperature) == ((5,), 3, 20, None)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text(max_size=5)
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
KEYS = (*GOOD, "head_dim", "rope_scaling", "rope_parameters", "sliding_window", "layer_types", "tie_word_embeddings")


MODEL_TYPES = st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])


@settings(max_examples=300, deadline=None)
@given(MODEL_TYPES, st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=3))
def test_no_config_ends_in_anything_but_our_error(model_type: str, changes: dict) -> None:
    values = {**GOOD, "model_type": model_type, "use_sliding_window": True, **changes}
    config = None
    with contextlib.suppress(ModelError):
        config = read_config(files(values))
    if config is None:
        return
    assert config.num_hidden_layers == len(config.layer_windows) == len(config.layer_ropes)
    assert math.isfinite(config.attention_scale)
    if config.num_hidden_layers < 10:
        assert build_program(config).parameters > 0


def test_widths_may_differ_by_layer() -> None:
    config = read(intermediate_size=[96, 64])
    assert (config.intermediate_size, config.intermediate_sizes) == (96, (96, 64))
    assert [config.mlp_width(layer) for layer in range(2)] == [96, 64]
    assert read(intermediate_size=[96, 96]) == read()
    for wrong in ([96], [96, 0], [96, "64"], []):
        with pytest.raises(ModelError, match="intermediate_size"):
            read(intermediate_size=wrong)

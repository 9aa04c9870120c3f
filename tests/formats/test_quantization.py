"""What each tool writes about its quantization, and what is refused (reliability.md CF9)."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import ModelError
from edgellm.formats import read_quantization
from edgellm.sidefiles import MemoryFiles

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
    "ignore": ["lm_head"],
}


def read(quantization=None, **files):
    config = {} if quantization is None else {"quantization_config": quantization}
    side = {f"{name}.json": json.dumps(table).encode() for name, table in files.items()}
    return read_quantization(MemoryFiles(side, "model"), config)


def refused(quantization, *messages, **files):
    start = time.process_time()
    with pytest.raises(ModelError) as caught:
        read(quantization, **files)
    assert time.process_time() - start < 2
    for message in messages:
        assert message in str(caught.value)


def test_a_model_that_is_not_quantized():
    assert read() is None


def test_gptq_in_config_json():
    stated = read(GPTQ)
    assert (stated.quant_method, stated.bits, stated.group_size, stated.sym) == ("gptq", 4, 128, True)
    assert stated.checkpoint_format == "gptq"
    assert "v1 taken" in stated.zero_points
    assert stated.file == "model:config.json"
    assert json.loads(json.dumps(stated.facts()))["bits"] == 4


@pytest.mark.parametrize(
    ("quantizer", "carry"), [(["gptqmodel:7.6.0"], True), ("gptqmodel:1", True), (["edgellm"], False)]
)
def test_the_writer_decides_how_zero_points_carry(quantizer, carry):
    stated = read({**GPTQ, "checkpoint_format": "gptq", "meta": {"quantizer": quantizer}})
    assert stated.default.word_carry is carry
    assert ("word by word" in stated.zero_points) is carry


def test_gptq_v2():
    assert read({**GPTQ, "checkpoint_format": "gptq_v2"}).zero_points == "as they are"


def test_quantize_config_json_alone_in_the_words_of_old_tools():
    stated = read(quantize_config={"w_bit": 8, "q_group_size": -1, "sym": False, "desc_act": True})
    assert (stated.quant_method, stated.bits, stated.group_size, stated.desc_act) == ("gptq", 8, -1, True)
    stated = read(quant_config={"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"})
    assert (stated.quant_method, stated.checkpoint_format, stated.sym) == ("awq", "gemm", False)


def test_two_statements_that_agree_or_not():
    both = read(GPTQ, quantize_config={**GPTQ, "checkpoint_format": "gptq_v2"})
    assert (both.checkpoint_format, both.format_given) == ("gptq_v2", True)
    assert read({**GPTQ}, quantize_config={**GPTQ, "checkpoint_format": "gptq"}).format_given
    refused(GPTQ, "quantize_config.json", "bits", "disagrees", quantize_config={**GPTQ, "bits": 8})
    refused(GPTQ, "group_size", "disagrees", quantize_config={**GPTQ, "group_size": 64})
    silent = {name: value for name, value in GPTQ.items() if name != "sym"}
    assert read(silent, quantize_config=GPTQ).sym is True
    meta = {"quantizer": ["gptqmodel:5"]}
    assert read(GPTQ, quantize_config={**GPTQ, "meta": meta}).default.word_carry
    refused(GPTQ, "sym", "disagrees", quantize_config={**GPTQ, "sym": False})
    one, two = ({**GPTQ, "checkpoint_format": name} for name in ("gptq", "gptq_v2"))
    refused(one, "checkpoint_format", "disagrees", quantize_config=two)


@pytest.mark.parametrize(
    ("packing", "layout", "checkpoint_format"),
    [
        ("auto_round:auto_gptq", "gptq", "gptq"),
        ("auto_round:auto_awq", "awq", "gemm"),
        ("auto_round:gptqmodel", "gptq", "gptq_v2"),
        ("auto_round:exllamav2", "gptq", "gptq_v2"),
        (None, "gptq", "gptq_v2"),
    ],
)
def test_auto_round(packing, layout, checkpoint_format):
    table = ROUND if packing is None else {**ROUND, "packing_format": packing}
    stated = read(table)
    assert (stated.quant_method, stated.checkpoint_format, stated.producer) == (layout, checkpoint_format, "auto-round")


def test_auto_round_settings_of_single_modules():
    extra = {
        "model.layers.0.mlp.down_proj": {"bits": 8},
        ".*model\\.layers\\.1\\.mlp\\.gate.*": {"bits": 2, "group_size": 64},
        "lm_head": {"bits": 16, "data_type": "float"},
    }
    stated = read({**ROUND, "extra_config": extra})
    assert stated.scheme("model.layers.0.mlp.down_proj").bits == 8
    gate = stated.scheme("model.layers.1.mlp.gate_proj")
    assert (gate.bits, gate.group_size, gate.sym) == (2, 64, False)
    assert stated.scheme("model.layers.11.mlp.gate_proj").bits == 4
    assert stated.facts()["overrides"] == 3  # a name, an expression and that expression as a name


def test_gptqmodel_dynamic():
    dynamic = {"lm_head": {"bits": 8, "group_size": 32}, "+:.*\\.1\\..*": {"bits": 2}, "-:.*gate.*": {}}
    stated = read({**GPTQ, "dynamic": dynamic})
    assert (stated.scheme("lm_head").bits, stated.scheme("lm_head").group_size) == (8, 32)
    assert stated.scheme("model.layers.1.mlp.up_proj").bits == 2
    assert stated.scheme("model.layers.0.mlp.up_proj").bits == 4


def test_gptqmodel_awq():
    table = {
        "quant_method": "awq",
        "checkpoint_format": "gemm",
        "format": "gemm",
        "bits": 4,
        "group_size": 64,
        "sym": True,
    }
    assert read({**table, "zero_point": False}).checkpoint_format == "gemm"


def test_compressed_tensors_under_its_old_key():
    table = {name: value for name, value in PACKED.items() if name != "quant_method"}
    assert (
        read_quantization(MemoryFiles({}, "model"), {"compression_config": table}).quant_method == "compressed-tensors"
    )


def test_compressed_tensors_groups():
    eight = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    groups = {
        "mlp": {"targets": ["re:.*mlp.*", "model.layers.9.self_attn.q_proj"], "weights": eight},
        "attention": {"targets": ["re:.*self_attn.*"], "weights": WEIGHTS, "format": "pack-quantized"},
    }
    groups["mlp"]["format"] = "pack-quantized"  # a group's own format beats the global one
    stated = read({**PACKED, "format": "mixed-precision", "config_groups": groups})
    up_proj = stated.scheme("model.layers.0.mlp.up_proj")
    assert (up_proj.bits, up_proj.group_size) == (8, -1)
    assert stated.scheme("model.layers.0.self_attn.q_proj").group_size == 64
    assert stated.scheme("model.layers.9.self_attn.q_proj").bits == 8
    with pytest.raises(ModelError, match="no group of the config covers it"):
        stated.scheme("lm_head")
    assert read(PACKED).scheme("anything").group_size == 64
    assert read(PACKED).ignore == ("lm_head",)


CASES = {
    "CF9-bits-0": ({**GPTQ, "bits": 0}, "quantization_config.bits", "2, 3, 4, 8"),
    "CF9-bits-5": ({**GPTQ, "bits": 5}, "bits", "found"),
    "CF9-bits-99": ({**GPTQ, "bits": 99}, "bits", "99"),
    "CF9-bits-text": ({**GPTQ, "bits": "4"}, "bits", "must be an integer"),
    "CF9-bits-true": ({**GPTQ, "bits": True}, "bits", "must be an integer"),
    "CF9-bits-missing": ({"quant_method": "gptq", "group_size": 1, "sym": True}, "bits", "is missing"),
    "CF9-awq-bits": ({**AWQ, "bits": 8}, "bits", "4"),
    "CF9-group-0": ({**GPTQ, "group_size": 0}, "group_size", "-1 (the whole row)"),
    "CF9-group-minus-7": ({**GPTQ, "group_size": -7}, "group_size", "-7"),
    "CF9-group-huge": ({**GPTQ, "group_size": 2**63}, "group_size", "out of range"),
    "CF9-group-null": ({**GPTQ, "group_size": None}, "group_size", "must be an integer"),
    "CF9-desc-act": ({**GPTQ, "desc_act": "yes"}, "desc_act", "true or false"),
    "CF9-sym-missing": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "sym", "is missing"),
    "CF9-sym": ({**GPTQ, "sym": 1}, "sym", "true or false"),
    "CF9-method": ({**GPTQ, "quant_method": "magic"}, "quant_method", "not supported"),
    "CF9-method-number": ({**GPTQ, "quant_method": 5}, "quant_method", "not supported"),
    "not-an-object": ([1], "quantization_config", "must be an object"),
    "fp8": ({"quant_method": "fp8"}, "'fp8'", "gptq, awq, compressed-tensors, auto-round"),
    "bitsandbytes": ({"quant_method": "bitsandbytes"}, "'bitsandbytes'", "not supported"),
    "hqq": ({"quant_method": "hqq"}, "'hqq'", "not supported"),
    "mxfp4": ({"quant_method": "mxfp4"}, "'mxfp4'", "not supported"),
    "marlin": ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format", "'marlin'"),
    "marlin-old": ({**GPTQ, "is_marlin_format": True}, "is_marlin_format", "not supported"),
    "bitblas": ({**GPTQ, "checkpoint_format": "bitblas"}, "checkpoint_format", "'bitblas'"),
    "gptq_p": ({**GPTQ, "checkpoint_format": "gptq_p"}, "checkpoint_format", "'gptq_p'"),
    "format-number": ({**GPTQ, "checkpoint_format": 2}, "checkpoint_format", "must be a string"),
    "pack-dtype": ({**GPTQ, "pack_dtype": "int64"}, "pack_dtype", "int32"),
    "gemv_fast": ({**AWQ, "version": "gemv_fast"}, "checkpoint_format", "'gemv_fast'"),
    "awq-marlin": ({**AWQ, "version": "marlin"}, "checkpoint_format", "'marlin'"),
    "awq-list": ({**AWQ, "modules_to_not_convert": [1]}, "modules_to_not_convert", "list of strings"),
    "round-packing": ({**ROUND, "packing_format": "auto_round:fp8"}, "packing_format", "not supported"),
    "round-type": ({**ROUND, "data_type": "mx_fp"}, "data_type", "not supported"),
    "round-extra": ({**ROUND, "extra_config": {"a": 1}}, "extra_config.a", "must be an object"),
    "round-extra-bits": ({**ROUND, "extra_config": {"a": {"bits": 7}}}, "extra_config.a.bits", "not supported"),
    "dynamic-list": ({**GPTQ, "dynamic": []}, "dynamic", "must be an object"),
    "dynamic-pattern": ({**GPTQ, "dynamic": {"(": {}}}, "dynamic", "not a regular expression"),
    "packed-none": ({**PACKED, "config_groups": {}}, "config_groups", "missing or empty"),
    "packed-group": ({**PACKED, "config_groups": {"g": 1}}, "config_groups.g", "must be an object"),
    "packed-float": (
        {**PACKED, "config_groups": {"g": {"targets": ["Linear"], "weights": {**WEIGHTS, "type": "float"}}}},
        "config_groups.g.weights.type",
        "floating point",
    ),
    "packed-strategy": (
        {**PACKED, "config_groups": {"g": {"targets": ["Linear"], "weights": {**WEIGHTS, "strategy": "block"}}}},
        "config_groups.g.weights.strategy",
        "block",
    ),
    "packed-format": ({**PACKED, "format": "marlin-24"}, "checkpoint_format", "marlin-24"),
    "packed-nvfp4": ({**PACKED, "format": "nvfp4-pack-quantized"}, "checkpoint_format", "nvfp4"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_statement_that_is_refused(case):
    quantization, *messages = CASES[case]
    refused(quantization, "model:config.json", *messages)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a*)*", "(x|y){5}z", ".*.*.*.*.*.*a", "a" * 600, "[(]+(b)*"])
def test_an_expression_that_could_take_long(pattern):
    refused({**GPTQ, "dynamic": {pattern: {"bits": 4}}}, "dynamic", "take too long")


def test_expressions_share_a_budget_of_time():
    dynamic = {f".*.*.*.*.*{i}!": {"bits": 4} for i in range(1000)}
    stated = read({**GPTQ, "dynamic": dynamic})
    start = time.process_time()
    with pytest.raises(ModelError, match="takes too long"):
        [stated.scheme("model." + "x" * 40) for _ in range(50)]
    assert time.process_time() - start < 3


def test_a_module_name_too_long_to_match():
    stated = read({**GPTQ, "dynamic": {"x.*": {"bits": 8}}})
    with pytest.raises(ModelError, match="too long to match"):
        stated.scheme("x" * 129)


def test_too_many_expressions():
    refused({**GPTQ, "dynamic": {f"{i}.*": {} for i in range(1025)}}, "dynamic", "too many entries")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "int", "gptq", "awq", "group", "re:.*", "("]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "weights", "targets", "bits"]), inner)
    ),
    max_leaves=5,
)
KEYS = sorted({*GPTQ, *AWQ, *ROUND, *PACKED, "dynamic", "extra_config", "meta", "checkpoint_format", "lm_head"})


@given(st.sampled_from([GPTQ, AWQ, ROUND, PACKED]), st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3))
@settings(max_examples=300, deadline=None)
def test_any_statement_is_read_or_refused(table, changes):
    try:
        stated = read({**table, **changes})
    except ModelError:
        return
    assert stated.quant_method in ("gptq", "awq", "compressed-tensors")
    assert json.dumps(stated.facts())

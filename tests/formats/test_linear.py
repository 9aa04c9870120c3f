"""Reading one layer: what each packing must look like (reliability.md D), and what a plain weight is."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgellm.errors import ModelError
from edgellm.formats import (
    QuantizedTensor,
    awq,
    compressed_tensors,
    describe_linear,
    gptq,
    open_checkpoint,
    read_linear,
    read_quantization,
)
from tests.formats.craft import write_model

OUT, IN, GROUP = 16, 64, 32
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "GEMM"}
PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP},
        }
    },
}


def a_tensor(permutation=None, zeros=None, bits=4) -> QuantizedTensor:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << bits, (OUT, IN), dtype=np.uint8)
    scales = rng.random((OUT, IN // GROUP)).astype(np.float16)
    if zeros is None:
        zeros = rng.integers(1, 1 << bits, (OUT, IN // GROUP), dtype=np.int16)
    return QuantizedTensor(codes, scales, zeros, bits, GROUP, permutation)


PACK = {"gptq": gptq.pack, "awq": awq.pack, "compressed-tensors": compressed_tensors.pack}
CONFIG = {"gptq": GPTQ, "awq": AWQ, "compressed-tensors": PACKED}


def load(folder, tensors, quantization, out=OUT, inputs=IN, **options):
    write_model(folder, {f"p.{name}": array for name, array in tensors.items()}, {"quantization_config": quantization})
    with open_checkpoint(folder) as checkpoint:
        config = json.loads(checkpoint.side_files.read("config.json"))
        stated = read_quantization(checkpoint.side_files, config)
        describe_linear(checkpoint, "p", stated)
        return read_linear(checkpoint, "p", stated, out, inputs, **options)


@pytest.mark.parametrize("layout", PACK)
def test_each_layout_through_a_file(tmp_path, layout):
    q = a_tensor()
    read = load(tmp_path, PACK[layout](q), CONFIG[layout])
    np.testing.assert_array_equal(read.dequantize(), q.dequantize())


@pytest.mark.parametrize("layout", ["gptq", "compressed-tensors"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_act_order_through_a_file(tmp_path, layout, dtype):
    permutation = np.r_[np.arange(0, IN, 2), np.arange(1, IN, 2)].astype(np.int32)
    q = a_tensor(permutation)
    tensors = PACK[layout](q)
    part = "g_idx" if layout == "gptq" else "weight_g_idx"
    tensors[part] = tensors[part].astype(dtype)
    read = load(tmp_path, tensors, CONFIG[layout])
    np.testing.assert_array_equal(read.permutation, permutation)
    np.testing.assert_array_equal(read.dequantize(), q.dequantize())


def test_a_compressed_tensors_g_idx_that_was_never_filled_in(tmp_path):
    q = a_tensor()
    tensors = {**compressed_tensors.pack(q), "weight_g_idx": np.full(IN, -1, np.int32)}
    assert load(tmp_path, tensors, PACKED).permutation is None


def with_part(name, change):
    def broken(tensors):
        if change is None:
            del tensors[name]
        else:
            tensors[name] = change(tensors[name])
        return tensors

    return broken


def poisoned(value, at=(0, 0)):
    def change(scales):
        scales = scales.copy()
        scales[at] = value
        return scales

    return change


CASES = {
    "QT1-gptq-rows": ("gptq", with_part("qweight", lambda a: a[:-1]), "p.qweight", "in * 4 / 32"),
    "QT1-gptq-columns": ("gptq", with_part("qweight", lambda a: a[:, :-1]), "p.qweight", "wrong shape"),
    "QT1-gptq-rank": ("gptq", with_part("qweight", lambda a: a.reshape(-1)), "p.qweight", "wrong shape"),
    "QT1-awq-columns": ("awq", with_part("qweight", lambda a: a[:, :-1]), "p.qweight", "out / 8"),
    "QT1-awq-transposed": ("awq", with_part("qweight", lambda a: a.T.copy()), "p.qweight", "[in, out / 8]"),
    "QT1-packed": ("compressed-tensors", with_part("weight_packed", lambda a: a[1:]), "p.weight_packed", "wrong shape"),
    "QT2-scales": ("gptq", with_part("scales", lambda a: a[:1]), "p.scales", "ceil(in / group_size)"),
    "QT2-zeros": ("gptq", with_part("qzeros", lambda a: a[:1]), "p.qzeros", "ceil(in / group_size)"),
    "QT2-awq-zeros": ("awq", with_part("qzeros", lambda a: a[:1]), "p.qzeros", "ceil(in / group_size)"),
    "QT2-packed": ("compressed-tensors", with_part("weight_scale", lambda a: a[:, :1]), "p.weight_scale", "groups"),
    "QT2-packed-zeros": (
        "compressed-tensors",
        with_part("weight_zero_point", lambda a: a[:, :1]),
        "p.weight_zero_point",
        "wrong shape",
    ),
    "QT3-range": ("gptq", with_part("g_idx", lambda a: a + 1), "p.g_idx", "does not exist"),
    "QT3-huge": ("gptq", with_part("g_idx", lambda a: a + 2**30), "p.g_idx", "does not exist"),
    "QT3-negative": ("gptq", with_part("g_idx", lambda a: a - 1), "p.g_idx", "does not exist"),
    "QT3-length": ("gptq", with_part("g_idx", lambda a: a[:-1]), "p.g_idx", "wrong shape"),
    "QT3-dtype": ("gptq", with_part("g_idx", lambda a: a.astype(np.float32)), "p.g_idx", "wrong dtype"),
    "QT3-uneven": ("gptq", with_part("g_idx", lambda a: (np.arange(IN) > 5).astype(np.int32)), "p.g_idx", "not full"),
    "QT4-qweight": ("gptq", with_part("qweight", lambda a: a.astype(np.float32)), "p.qweight", "wrong dtype"),
    "QT4-qzeros": ("awq", with_part("qzeros", lambda a: a.view(np.float32)), "p.qzeros", "wrong dtype"),
    "QT4-scales": ("gptq", with_part("scales", lambda a: a.astype(np.int32)), "p.scales", "wrong dtype"),
    "QT5-nan": ("gptq", with_part("scales", poisoned(np.nan)), "p.scales", "1 of 32"),
    "QT5-infinity": ("awq", with_part("scales", poisoned(-np.inf)), "p.scales", "not finite"),
    "QT5-packed": ("compressed-tensors", with_part("weight_scale", poisoned(np.nan)), "p.weight_scale", "not finite"),
    "QT8-qweight": ("gptq", with_part("qweight", None), "p.weight", "missing"),
    "QT8-qzeros": ("gptq", with_part("qzeros", None), "p.qzeros", "missing"),
    "QT8-scales": ("awq", with_part("scales", None), "p.scales", "missing"),
    "QT8-packed-scale": ("compressed-tensors", with_part("weight_scale", None), "p.weight_scale", "missing"),
    "QT8-packed-zeros": ("compressed-tensors", with_part("weight_zero_point", None), "p.weight_zero_point", "missing"),
    "IX7-weight-shape": (
        "compressed-tensors",
        with_part("weight_shape", lambda a: a + 1),
        "p.weight_shape",
        "not the shape",
    ),
    "QT7-both": (
        "gptq",
        lambda t: {**t, "weight": np.ones((OUT, IN), np.float16)},
        "p.qweight",
        "both qweight and weight",
    ),
    "QT7-packed": (
        "compressed-tensors",
        lambda t: {**t, "weight": np.ones((OUT, IN), np.float16)},
        "p.weight_packed",
        "both weight_packed and weight",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_layer_ends_in_a_named_error(case, tmp_path):
    layout, breaking, key, message = CASES[case]
    with pytest.raises(ModelError) as caught:
        load(tmp_path, breaking(PACK[layout](a_tensor())), CONFIG[layout])
    line = str(caught.value)
    assert str(tmp_path) in line
    assert f"{key}:" in line
    assert message in line


@pytest.mark.parametrize("layout", PACK)
@pytest.mark.parametrize(("out", "inputs"), [(OUT + 1, IN), (OUT, IN * 2), (IN, OUT), (8, IN)])
def test_ix7_a_layer_of_another_model(tmp_path, layout, out, inputs):
    with pytest.raises(ModelError, match=r": p\."):
        load(tmp_path, PACK[layout](a_tensor()), CONFIG[layout], out, inputs)


@pytest.mark.parametrize("layout", PACK)
def test_the_config_says_other_bits_or_groups(tmp_path, layout):
    tensors = PACK[layout](a_tensor())
    for key, value in (("bits", 8), ("group_size", 16), ("group_size", -1)):
        config = json.loads(json.dumps(CONFIG[layout]))
        where = config["config_groups"]["group_0"]["weights"] if layout == "compressed-tensors" else config
        where["num_bits" if key == "bits" and where is not config else key] = value
        with pytest.raises(ModelError):
            load(tmp_path, tensors, config)


def test_qt5_scales_that_are_not_finite_may_be_let_through(tmp_path):
    tensors = gptq.pack(a_tensor())
    tensors["scales"][0, 0] = np.nan
    q = load(tmp_path, tensors, GPTQ, allow_nonfinite=True)
    assert np.isnan(q.scales).sum() == 1


def test_qt5_zero_negative_and_denormal_scales_are_numbers(tmp_path):
    tensors = gptq.pack(a_tensor())
    tensors["scales"][0, :3] = [0, -1, 6e-8]
    assert load(tmp_path, tensors, GPTQ).scales[:3, 0].tolist() == tensors["scales"][0, :3].tolist()


@pytest.mark.parametrize(("said", "stored"), [("gptq", "gptq_v2"), ("gptq_v2", "gptq")])
def test_qt6_symmetric_zero_points_prove_the_format(tmp_path, said, stored):
    q = a_tensor(zeros=np.full((OUT, IN // GROUP), 8, np.int16))
    right = gptq.pack(q, checkpoint_format=said)
    config = {**GPTQ, "sym": True, "checkpoint_format": said}
    np.testing.assert_array_equal(load(tmp_path, right, config).dequantize(), q.dequantize())
    with pytest.raises(ModelError, match=f"p.qzeros: zero points are stored as {stored} does") as caught:
        load(tmp_path, gptq.pack(q, checkpoint_format=stored), config)
    assert "config.json" in str(caught.value)


def test_bfloat16_scales_become_float32(tmp_path):
    q = a_tensor()
    tensors = {**awq.pack(q), "scales": np.full((IN // GROUP, OUT), 0x3FC0, np.uint16)}
    read = load(tmp_path, tensors, AWQ)
    assert read.scales.dtype == np.float32
    assert (read.scales == 1.5).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
def test_a_plain_weight(tmp_path, dtype):
    weight = np.full((OUT, IN), 0x3FC0 if dtype is np.uint16 else 1.5, dtype)
    read = load(tmp_path, {"weight": weight}, GPTQ)  # "not converted" modules of a quantized model are plain
    assert read.dtype == np.float32
    assert (read == 1.5).all()
    with pytest.raises(ModelError, match=r"p.weight: wrong shape.*\[16, 65\]"):
        load(tmp_path, {"weight": weight}, GPTQ, OUT, IN + 1)


def test_a_weight_that_is_no_number_of_ours(tmp_path):
    with pytest.raises(ModelError, match=r"p\.weight"):
        load(tmp_path, {"weight": np.ones((OUT, IN), np.int32)}, GPTQ)
    with pytest.raises(ModelError, match=r"p\.weight: the tensor is missing"):
        load(tmp_path, {"bias": np.ones(OUT, np.float32)}, GPTQ)


def test_a_quantized_layer_that_nothing_speaks_of(tmp_path):
    write_model(tmp_path, {f"p.{name}": array for name, array in gptq.pack(a_tensor()).items()})
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(ModelError, match="nothing says how"):
        read_linear(checkpoint, "p", None, OUT, IN)


def test_tensors_of_another_layout_than_said(tmp_path):
    with pytest.raises(ModelError, match="not those of compressed-tensors"):
        load(tmp_path, gptq.pack(a_tensor()), PACKED)
    with pytest.raises(ModelError, match="not those of gptq"):
        load(tmp_path, compressed_tensors.pack(a_tensor()), GPTQ)


def test_int8_weights(tmp_path):
    weight = np.arange(OUT * IN, dtype=np.int64).reshape(OUT, IN).astype(np.int8)
    config = json.loads(json.dumps(PACKED))
    config["format"] = "int-quantized"
    config["config_groups"]["group_0"]["weights"] = {"num_bits": 8, "strategy": "channel", "symmetric": True}
    tensors = {"weight": weight, "weight_scale": np.full((OUT, 1), 0.5, np.float32)}
    q = load(tmp_path, tensors, config)
    np.testing.assert_array_equal(q.dequantize(), weight * np.float32(0.5))
    with pytest.raises(ModelError, match=r"p\.weight: int8 where"):
        load(tmp_path, tensors, PACKED)


def test_describe_reads_no_codes(tmp_path, monkeypatch):
    permutation = np.r_[np.arange(0, IN, 2), np.arange(1, IN, 2)].astype(np.int32)
    tensors = {f"p.{name}": array for name, array in gptq.pack(a_tensor(permutation)).items()}
    tensors["d.weight"] = np.ones((2, 3), np.uint16)
    write_model(tmp_path, tensors, {"quantization_config": GPTQ})
    with open_checkpoint(tmp_path) as checkpoint:
        stated = read_quantization(checkpoint.side_files, {"quantization_config": GPTQ})
        read, names = checkpoint.read, []
        monkeypatch.setattr(checkpoint, "read", lambda name: names.append(name) or read(name))
        facts = describe_linear(checkpoint, "p", stated)
        assert names == ["p.g_idx"]
        assert facts == {
            "kind": "gptq",
            "bits": 4,
            "nbytes": sum(array.nbytes for name, array in tensors.items() if name.startswith("p.")),
            "group_size": GROUP,
            "sym": False,
            "act_order": True,
            "checkpoint_format": "gptq",
        }
        assert describe_linear(checkpoint, "d", stated) == {"kind": "BF16", "bits": 16, "nbytes": 12}

"""Whole models into the arena: the same bytes for any number of threads and any file format, little memory, exact
progress, errors with names."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgellm.backends.cpu.packed import PackedWeights, pack_weights
from edgellm.backends.cpu.packed_plan import dense_bits, plan_packing
from edgellm.backends.cpu.packing import factor_fits, layout_of, pack_linear, unpack_linear
from edgellm.backends.cpu.packing_jobs import PackingJobs
from edgellm.errors import ModelError, OutOfMemoryError, UsageError
from edgellm.formats import QuantizedTensor
from edgellm.model import fuse, open_model
from tests.backends.cpu.kernels import WITHOUT_JIT
from tools.make_synthetic import Storage, make_synthetic

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1100,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
ROOT = Path(__file__).resolve().parents[3]
STORAGES = {
    "gptq": Storage("gptq", 4, 32, sym=True, desc_act=False),
    "gptq asymmetric": Storage("gptq", 4, 32, sym=False, desc_act=False),
    "gptq act-order": Storage("gptq", 4, 32, sym=True, desc_act=True),
    "gptq 8 bits": Storage("gptq", 8, 32, sym=True, desc_act=False),
    "awq": Storage("awq", 4, 32, sym=False, desc_act=False),
    "float16": Storage("float16", 4, 32, sym=True, desc_act=False),
}


def synthetic(folder: Path, storage: str = "gptq", **config: object) -> Path:
    return make_synthetic({**CONFIG, **config}, folder / "model", STORAGES[storage], tokenizer=False)


def pack(folder: Path, head: str = "int8", threads: int = 1, progress=None) -> PackedWeights:
    with open_model(folder) as model:
        return pack_weights(fuse(model.weights.program), model.weights, head, progress, threads)


def weight_in(packed: PackedWeights, name: str) -> np.ndarray:
    linear = packed.linears[name]
    return unpack_linear(packed.data[linear.offset :][: linear.layout.nbytes], linear.layout, linear.factor)


@pytest.mark.parametrize("storage", STORAGES)
def test_every_weight_is_that_of_the_file_and_threads_change_no_byte(storage: str, tmp_path: Path) -> None:
    folder = synthetic(tmp_path, storage)
    one, three = pack(folder, "keep", 1), pack(folder, "keep", 3)
    assert one.nbytes == three.nbytes
    assert np.array_equal(one.data[: one.nbytes], three.data[: three.nbytes])
    assert {name: linear.factor for name, linear in one.linears.items()} == {
        name: linear.factor for name, linear in three.linears.items()
    }
    with open_model(folder) as model:
        for name, spec in model.weights.program.weights.items():
            if spec.kind == "vector" or name == "lm_head":
                continue
            stored = model.weights.embedding() if name == "embed_tokens" else model.weights.linear(name)
            dense = stored if isinstance(stored, np.ndarray) else stored.dequantize()
            order = one.linears[name].permutation
            expected = dense if order is None else dense[:, order]
            assert np.array_equal(weight_in(one, name), expected), name
            if not isinstance(stored, np.ndarray):  # the very bytes that packing from codes gives
                out = np.zeros(one.linears[name].layout.nbytes, np.uint8)
                pack_linear(stored, out, layout_of(stored))
                offset = one.linears[name].offset
                assert np.array_equal(one.data[offset : offset + len(out)], out), name


@pytest.mark.parametrize("threads", [1, 2])
def test_progress_is_exact_and_told_by_the_caller(threads: int, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    packed = pack(synthetic(tmp_path, "gptq asymmetric"), "int8", threads, lambda done, all: calls.append((done, all)))
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1] >= packed.nbytes
    assert len(calls) > 10


@pytest.mark.parametrize(("head", "bits"), [("int8", 8), ("int4", 4), ("keep", 16)])
def test_heads(head: str, bits: int, tmp_path: Path) -> None:
    tied = pack(synthetic(tmp_path / "tied"), head)
    assert tied.linears["lm_head"] is tied.linears["embed_tokens"]
    assert tied.linears["lm_head"].layout.bits == bits
    names = {8: "int8", 4: "int4", 16: "float16"}
    assert tied.describe_head() == {"lm_head": names[bits], "lm_head_bytes": tied.linears["lm_head"].layout.nbytes}
    own = pack(synthetic(tmp_path / "own", tie_word_embeddings=False), head)
    assert own.linears["lm_head"].layout.bits == bits
    assert own.linears["embed_tokens"].layout.bits == (8 if head == "int4" else bits)


def test_plans_know_the_arena_and_what_loading_holds(tmp_path: Path) -> None:
    folder = synthetic(tmp_path, "gptq asymmetric", tie_word_embeddings=False)
    with open_model(folder) as model:
        program = fuse(model.weights.program)
        plan = plan_packing(program, model.weights, "int4")
        assert plan.nbytes >= pack(folder, "int4").nbytes > 0.9 * plan.nbytes
        assert plan.layouts["lm_head"].bits == dense_bits("lm_head", model.weights, "int4") == 4
        assert plan.largest_tensor == 2 * 1100 * 64
        assert plan.threads_at_work(100) == plan.largest_tensor // plan.largest_words
        assert plan.loading_bytes(1) < plan.loading_bytes(2) <= plan.loading_bytes(100)
        with pytest.raises(UsageError, match="lm_head"):
            plan_packing(program, model.weights, "int3")


def test_groups_that_no_group_in_memory_divides_become_dense(tmp_path: Path) -> None:
    folder = make_synthetic(
        CONFIG, tmp_path / "model", replace(STORAGES["gptq asymmetric"], group_size=8), tokenizer=False
    )
    packed = pack(folder, threads=2)
    name = "layers.1.mlp.down_proj"
    with open_model(folder) as model:
        expected = model.weights.linear(name).dequantize()
    assert packed.linears[name].layout.bits == 16
    assert np.abs(weight_in(packed, name) - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("threads", [1, 2])
def test_one_weight_at_a_time_is_held_whole(threads: int, tmp_path: Path, monkeypatch) -> None:
    held: list[weakref.ref] = []
    most = 0
    dequantize = QuantizedTensor.dequantize

    def counted(weight: QuantizedTensor) -> np.ndarray:
        nonlocal most
        whole = dequantize(weight)
        held.append(weakref.ref(whole))
        most = max(most, sum(reference() is not None for reference in held))
        return whole

    folder = make_synthetic(CONFIG, tmp_path / "model", replace(STORAGES["gptq"], group_size=8), tokenizer=False)
    monkeypatch.setattr(QuantizedTensor, "dequantize", counted)
    pack(folder, threads=threads)
    assert len(held) == 7 * CONFIG["num_hidden_layers"]
    assert most == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_truncated_file_names_the_tensor(threads: int, tmp_path: Path) -> None:
    folder = synthetic(tmp_path)
    with open_model(folder) as model:
        file = folder / "model.safetensors"
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        with pytest.raises(ModelError, match="changed"):
            pack_weights(fuse(model.weights.program), model.weights, "int8", None, threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_no_memory_for_a_piece_names_the_weight(threads: int, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_):
        raise MemoryError

    with open_model(synthetic(tmp_path)) as model:
        monkeypatch.setattr(type(model.weights), "rows", refuse)
        with pytest.raises(OutOfMemoryError, match="embed_tokens"):
            pack_weights(fuse(model.weights.program), model.weights, "int8", None, threads)


def test_jobs_after_an_error_are_dropped() -> None:
    done: list[int] = []

    def fail() -> None:
        raise ModelError("broken")

    def submit() -> None:
        with PackingJobs(2, None, 10) as jobs:
            jobs.submit(1, fail)
            for number in range(100):
                jobs.submit(1, lambda number=number: done.append(number))

    with pytest.raises(ModelError, match="broken"):
        submit()
    assert len(done) < 100


def rewritten(folder: Path, change: Callable[[dict[str, np.ndarray]], None], **config: object) -> Path:
    """The folder with its tensors changed in place, and entries of its config."""
    from safetensors.numpy import load_file, save_file

    file, settings = folder / "model.safetensors", folder / "config.json"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **config}))
    return folder


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("factor", [2.0**11, 2.0**-11])
def test_magnitudes_out_of_the_usual_range_are_packed_again(threads: int, factor: float, tmp_path: Path) -> None:
    names = ["embed_tokens", "layers.0.self_attn.o_proj"]

    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in names:
            tensors[f"model.{name}.weight"] *= np.float16(factor)

    folder = rewritten(synthetic(tmp_path, "float16"), change)
    packed = pack(folder, "int8", threads)
    with open_model(folder) as model:
        dense = {"embed_tokens": model.weights.embedding(), **{name: model.weights.linear(name) for name in names[1:]}}
    for name, weight in dense.items():
        linear = packed.linears[name]
        assert not factor_fits(float(np.abs(weight).max()))
        out = np.zeros(linear.layout.nbytes, np.uint8)
        assert linear.factor == pack_linear(weight, out, linear.layout)
        assert np.array_equal(packed.data[linear.offset : linear.offset + len(out)], out), name
    assert packed.linears["layers.0.self_attn.o_proj"].layout.bits == 16
    assert packed.linears["lm_head"] is packed.linears["embed_tokens"]


def test_codes_that_are_read_whole(tmp_path: Path) -> None:
    """int8 numbers [out, in] lie in no words, so their weight comes as codes, one at a time."""
    rng = np.random.default_rng(3)

    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            rows = len(tensors[name])
            tensors[name] = rng.integers(-128, 128, tensors[name].shape).astype(np.int8)
            tensors[f"{name}_scale"] = rng.uniform(0.01, 0.02, (rows, 1)).astype(np.float16)

    scheme = {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel", "symmetric": True}}
    quantization = {"quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"]}
    quantization["config_groups"] = {"group_0": scheme}
    folder = rewritten(synthetic(tmp_path, "float16"), change, quantization_config=quantization)
    one, two = pack(folder, threads=1), pack(folder, threads=2)
    assert np.array_equal(one.data[: one.nbytes], two.data[: two.nbytes])
    with open_model(folder) as model:
        plan = plan_packing(fuse(model.weights.program), model.weights, "int8")
        for name in ("layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"):
            weight = model.weights.stored(name)
            assert isinstance(weight, QuantizedTensor)
            assert one.linears[name].layout.bits == 8
            assert np.array_equal(weight_in(one, name), weight.dequantize())
    assert plan.nbytes >= one.nbytes > 0.9 * plan.nbytes
    assert plan.largest_whole >= 3 * 160 * 64  # as stored, as codes, and those turned


LOAD = """
import json, sys
import edgellm
from edgellm.api import memory
from edgellm.backends.cpu.packed import pack_weights
from edgellm.formats import QuantizedTensor
from edgellm.model import fuse, open_model
small, large = sys.argv[1:]
def pack(folder):
    with open_model(folder) as model:
        return pack_weights(fuse(model.weights.program), model.weights, "int8", None, 2)
pack(small)  # modules and kernels
before = memory.resident_bytes()
packed = pack(large)
print(json.dumps([before, memory.peak_bytes(), packed.nbytes]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or WITHOUT_JIT, reason="reads the peak from /proc")
def test_loading_holds_little_beside_what_is_packed(tmp_path: Path) -> None:
    """58 MB of file, of which the embedding is 31: read whole as float32 it took 62 MB beside its place."""
    small = synthetic(tmp_path / "small")
    sizes = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 7, "vocab_size": 30_000}
    large = synthetic(tmp_path / "large", **sizes)
    arguments = [sys.executable, "-c", LOAD, str(small), str(large)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT)
    before, peak, packed = json.loads(run.stdout)
    assert peak - before < packed + (12 << 20)

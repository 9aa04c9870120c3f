"""Models for peers: files of the right types and sizes, what a token reads of them, what is not built and why."""

from __future__ import annotations

import io
import json
import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools.make_synthetic import Storage, make_synthetic, model_config
from tools.peers import gguf_model, models
from tools.peers.ctranslate2_model import variables
from tools.peers.engines import chosen
from tools.peers.models import Allowance, BuildFailed, _build, make_models
from tools.peers.openvino_model import weights_read
from tools.peers.places import Work
from tools.peers.random_blocks import RandomBlocks
from tools.peers.tensor_types import BLOCKS, MIXES, GGUFTensor, fitting, gguf_tensors, head_of, more_bits, read_bytes

LLAMA_1B, QWEN_05B, LLAMA_7B = map(model_config, ("llama-3.2-1b", "qwen2.5-0.5b", "llama-2-7b"))


def types_of(config: dict[str, Any], mix: str) -> dict[str, str]:
    return {tensor.name: tensor.type for tensor in gguf_tensors(config, mix)}


@pytest.mark.parametrize(
    ("layers", "expected"), [(16, [0, 1, 4, 7, 10, 13, 14, 15]), (24, [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23])]
)
def test_the_layers_that_keep_more_bits(layers: int, expected: list[int]) -> None:
    assert [layer for layer in range(layers) if more_bits(layer, layers)] == expected


def test_q4_k_m_is_the_mixture_of_llama_cpp() -> None:
    types = types_of(LLAMA_1B, "q4_k_m")
    assert types["token_embd.weight"] == "Q6_K"
    assert "output.weight" not in types
    assert types["blk.0.attn_v.weight"] == types["blk.0.ffn_down.weight"] == "Q6_K"
    assert types["blk.2.attn_v.weight"] == types["blk.0.attn_q.weight"] == types["blk.0.ffn_up.weight"] == "Q4_K"
    # 807,694,464 bytes is the published Llama-3.2-1B Q4_K_M file: tensors, and 8 MB of vocabulary
    nbytes = sum(tensor.nbytes for tensor in gguf_tensors(LLAMA_1B, "q4_k_m"))
    assert 0 < 807_694_464 - nbytes < 9e6


def test_an_untied_model_has_a_head_of_its_own() -> None:
    types = types_of(LLAMA_7B, "q4_k_m")
    assert (types["token_embd.weight"], types["output.weight"]) == ("Q4_K", "Q6_K")
    assert types_of(LLAMA_7B, "q4_0")["output.weight"] == "Q8_0"
    assert set(types_of(LLAMA_7B, "q4_0-head4").values()) == {"F32", "Q4_0"}
    tensors = gguf_tensors(LLAMA_7B, "q4_k_m")
    embedding = next(tensor for tensor in tensors if tensor.name == "token_embd.weight")
    total = sum(tensor.nbytes for tensor in tensors)
    assert head_of(tensors).name == "output.weight"
    assert read_bytes(tensors) == total - embedding.nbytes + embedding.nbytes // 32000


def test_rows_that_256_does_not_divide_fall_back() -> None:
    types = types_of(QWEN_05B, "q4_k_m")  # rows of 896; those of down_proj have 4864 = 19 * 256
    assert types["blk.3.attn_q.weight"] == "Q5_0"
    assert types["token_embd.weight"] == types["blk.0.attn_v.weight"] == "Q8_0"
    assert types["blk.3.ffn_down.weight"] == "Q4_K"
    assert types["blk.0.attn_q.bias"] == "F32"
    assert fitting("Q4_0", 48) == "F16"


@pytest.mark.parametrize("config", [LLAMA_1B, QWEN_05B, LLAMA_7B])
@pytest.mark.parametrize("mix", MIXES)
def test_a_token_reads_all_linears_once(config: dict[str, Any], mix: str) -> None:
    tensors = gguf_tensors(config, mix)
    weights = sum(int(np.prod(tensor.shape)) for tensor in tensors if tensor.name != "token_embd.weight")
    if config.get("tie_word_embeddings"):
        weights += config["vocab_size"] * config["hidden_size"]
    assert 4.5 <= read_bytes(tensors) * 8 / weights <= 6.6


def dequantized(kind: str, raw: np.ndarray) -> np.ndarray:
    """Values of blocks uint8 [N, bytes], as ggml defines them."""

    def half(at: int) -> np.ndarray:
        return raw[:, at : at + 2].copy().view("<f2").astype(np.float32)

    if kind == "Q8_0":
        return half(0) * raw[:, 2:].view(np.int8)
    if kind == "Q4_0":
        return half(0) * (np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], 1).astype(np.float32) - 8)
    if kind == "Q4_K":
        scales, codes = raw[:, 4:16], raw[:, 16:]
        low = np.concatenate([scales[:, 0:4] & 63, (scales[:, 8:12] & 15) | (scales[:, 0:4] >> 6 << 4)], 1)
        high = np.concatenate([scales[:, 4:8] & 63, (scales[:, 8:12] >> 4) | (scales[:, 4:8] >> 6 << 4)], 1)
        parts = codes.reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & 15
        parts = parts.reshape(-1, 8, 32).astype(np.float32)
        return ((half(0) * low)[:, :, None] * parts - (half(2) * high)[:, :, None]).reshape(-1, 256)
    low = raw[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & 15
    high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3
    codes = (low.reshape(-1, 8, 32) | high.reshape(-1, 8, 32) << 4).astype(np.float32) - 32
    scales = half(208) * raw[:, 192:208].view(np.int8)
    return (scales[:, :, None] * codes.reshape(-1, 16, 16)).reshape(-1, 256)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K", "Q6_K"])
def test_random_blocks_have_the_spread_asked_for(kind: str) -> None:
    tensor = GGUFTensor("blk.0.attn_q.weight", (1000, 1024), kind)
    raw = np.concatenate(list(RandomBlocks().parts(tensor, 0.03)))
    assert raw.nbytes == tensor.nbytes
    values = dequantized(kind, raw.reshape(-1, BLOCKS[kind][1]))
    assert values.std() == pytest.approx(0.03, rel=0.1)
    assert abs(values.mean()) < 0.005


def test_random_blocks_differ_from_tensor_to_tensor_and_norms_are_around_one() -> None:
    blocks = RandomBlocks()
    first, second = (
        np.concatenate(list(blocks.parts(GGUFTensor(name, (64, 512), "Q8_0"), 1.0)))
        for name in ("a.weight", "b.weight")
    )
    assert not np.array_equal(first, second)
    norm = np.concatenate(list(blocks.parts(GGUFTensor("blk.0.attn_norm.weight", (896,), "F32"), 0.1))).view("<f4")
    assert norm.shape == (896,)
    assert norm.mean() == pytest.approx(1.0, abs=0.05)


class GGUFWriter:
    """In place of the package's: a header of the names, what was said of the model."""

    data_alignment = 32

    def __init__(self, path: Path, arch: str, use_temp_file: bool) -> None:
        self.fout, self.infos = [path.open("wb")], {}
        written.append(self)
        self.said: dict[str, Any] = {"arch": arch}

    def __getattr__(self, name: str) -> Any:
        return lambda *values: self.said.__setitem__(name, values[0] if values else None)

    def add_tensor_info(self, name: str, shape: Any, dtype: Any, nbytes: int, raw_dtype: Any = None) -> None:
        self.infos[name] = (tuple(shape), np.dtype(dtype), nbytes, raw_dtype)

    def write_header_to_file(self) -> None:
        self.fout[0].write(b"GGUF!")

    def close(self) -> None:
        self.fout[0].close()


written: list[GGUFWriter] = []


@pytest.mark.parametrize("mix", MIXES)
def test_a_gguf_file_has_its_tensors_where_the_header_says(
    mix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = types.ModuleType("gguf")
    gguf.GGUFWriter, gguf.GGMLQuantizationType = GGUFWriter, {name: name for name in BLOCKS}
    monkeypatch.setitem(sys.modules, "gguf", gguf)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {**QWEN_05B, **sizes, "vocab_size": 700, "num_hidden_layers": 2, "max_position_embeddings": 64}
    folder = make_synthetic(config, tmp_path / "edgellm", Storage(), name="small")
    path = tmp_path / f"{mix}.gguf"
    gguf_model.write(folder, path, mix)
    writer = written.pop()
    tensors = gguf_tensors(config, mix)
    assert [tensor.name for tensor in tensors] == list(writer.infos)
    raw = path.read_bytes()
    assert not path.with_suffix(".partial").exists()
    at = 32  # behind five bytes of header
    for tensor in tensors:
        shape, dtype, nbytes, kind = writer.infos[tensor.name]
        assert nbytes == tensor.nbytes == int(np.prod(shape)) * dtype.itemsize
        assert kind == (None if tensor.type in ("F32", "F16") else tensor.type)
        assert any(raw[at : at + nbytes])
        at += -(-nbytes // 32) * 32
    assert at == len(raw)
    norm = next(tensor for tensor in tensors if tensor.name == "output_norm.weight")
    assert norm.type == "F32"
    assert (writer.said["add_rope_dimension_count"], writer.said["add_head_count_kv"]) == (64, 2)
    assert len(writer.said["add_token_list"]) == 700
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["weight_bytes"] == read_bytes(tensors)
    assert facts["head"].endswith(" (the embedding)")


def test_what_openvino_reads_a_token() -> None:
    def constant(name: str, kind: str, shape: str, size: int) -> str:
        return f'<layer type="Const" name="{name}"><data element_type="{kind}" shape="{shape}" size="{size}"/></layer>'

    linear = constant("layers.0.mlp.up_proj.weight", "i4", "200, 2, 32", 6400)
    embedding = constant("embed_tokens.weight", "u8", "100, 64", 6400) + constant(
        "embed_tokens/scale", "f16", "100, 1", 200
    )
    lookup = constant("embed_tokens/Constant", "i32", "", 4)
    tied = weights_read(f"<net>{linear}{embedding}{lookup}</net>")
    assert tied == {"weight_bytes": 6400 + 6400 + 200 + 4, "head": "u8 (the embedding)"}
    untied = weights_read(f"<net>{linear}{embedding}{lookup}{constant('lm_head.weight', 'u8', '100, 64', 6400)}</net>")
    assert untied == {"weight_bytes": 6400 + 66 + 4 + 6400, "head": "u8"}


def test_the_variables_of_a_ctranslate2_model() -> None:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    body = struct.pack("<I", 6) + text("TransformerDecoderSpec") + struct.pack("<I", 8) + struct.pack("<I", 2)
    body += text("a/weight") + struct.pack("<BIIBI", 2, 3, 4, 1, 12) + bytes(12)
    body += text("scale") + struct.pack("<BBI", 0, 0, 4) + bytes(4) + struct.pack("<I", 0)
    assert list(variables(io.BytesIO(body))) == [("a/weight", "int8", 12, 3), ("scale", "float32", 4, 1)]


def test_models_are_written_once_and_the_dense_checkpoint_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[list[str]] = []

    def build(command: list[str], log: Path, allowed: Allowance) -> int:
        built.append(command)
        path = Path(command[4])
        path.touch()
        models.facts_path(path).write_text('{"weight_bytes": 1}')
        return 10**9

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
    small = {**QWEN_05B, **sizes, "num_hidden_layers": 1, "vocab_size": 600}
    monkeypatch.setattr(models, "_build", build)
    monkeypatch.setattr(models, "model_config", lambda shape: small)
    monkeypatch.setattr(models, "_require", lambda work, environment: None)
    names = ["llama.cpp-q4_0", "llama.cpp-q4_0-norepack", "llama.cpp-q4_0-head4", "openvino", "ctranslate2"]
    work, said, engines = Work(tmp_path), [], chosen(names)
    make_models("s", engines, work, Allowance(), said.append)
    folder = work.shape("s")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"edgellm"}
    commands = {Path(command[4]).name: command for command in built}
    # with and without repacking, llama.cpp reads one file
    assert list(commands) == ["q4_0.gguf", "q4_0-head4.gguf", "openvino", "ctranslate2"]
    assert commands["q4_0.gguf"][2:4] == ["tools.peers.gguf_model", str(folder / "edgellm")]
    assert commands["q4_0-head4.gguf"][-1] == "q4_0-head4"
    assert commands["openvino"][2:4] == ["tools.peers.openvino_model", str(folder / "float16")]
    assert said[-1].endswith("1.0 GB of memory")
    make_models("s", engines, work, Allowance(), said.append)
    assert len(built) == len(commands)


def test_a_model_that_is_too_large_or_fails_leaves_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(tmp_path)
    (tmp_path / "make" / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "make" / "venv" / "bin" / "python").symlink_to(sys.executable)
    folder = work.shape("smollm2-135m")
    (folder / "edgellm").mkdir(parents=True)
    monkeypatch.setattr(models, "make_synthetic", None)  # what is too large is not even written
    said: list[str] = []
    engines = chosen(["openvino", "llama.cpp-q4_0"])
    make_models("smollm2-135m", engines, work, Allowance(nbytes=1 << 29), said.append)
    # 134.5 million weights in two bytes each
    assert "the 0.3 GB checkpoint twice is more than 0.5 GiB" in work.facts(folder / "openvino")["missing"]
    assert "setup llama.cpp" in work.facts(folder / "q4_0.gguf")["missing"]
    models._check_size(model_config("smollm2-135m"), Allowance(nbytes=4 * 134_600_000))
    log = tmp_path / "log"
    with pytest.raises(BuildFailed, match="out of paint"):
        _build([sys.executable, "-c", "raise SystemExit('out of paint')"], log, Allowance())
    with pytest.raises(BuildFailed, match="minutes"):
        _build([sys.executable, "-c", "import time; time.sleep(60)"], log, Allowance(seconds=0.1))

"""Peers: files of the right types and sizes, figures counted right, a disturbed or failing turn told apart."""

from __future__ import annotations

import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.errors import UsageError
from tools import bench_peers
from tools.make_synthetic import model_config
from tools.peers import quiet
from tools.peers.ctranslate2_model import variables
from tools.peers.engines import ENGINES, chosen, missing, settings
from tools.peers.environments import left_out
from tools.peers.models import Allowance, BuildFailed, _build, make_models
from tools.peers.openvino_model import weights_read
from tools.peers.places import Work
from tools.peers.random_blocks import RandomBlocks
from tools.peers.rounds import Figures, Outcome, Workload, jobs, read_turn
from tools.peers.table import cache_bytes, markdown, ratios, summary
from tools.peers.tensor_types import BLOCKS, MIXES, GGUFTensor, fitting, gguf_tensors, head_of, more_bits, read_bytes
from tools.peers.tune import contenders, tune
from tools.peers.turns import Patience, Turn, WorkerFailed, take

LOAD = Workload((512,), 64, (0, 2048), 2)
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


def test_what_a_build_of_llama_cpp_leaves_out() -> None:
    cpuinfo = "processor: 0\nflags\t\t: fpu avx2 fma avx512f avx512_vnni\nprocessor: 1\n"
    assert left_out("CPU : AVX2 = 1 | FMA = 1 | AVX512 = 1 | AVX512_VNNI = 1 |", cpuinfo) == []
    assert left_out("CPU : AVX2 = 1 | FMA = 1 | AVX512 = 1 | AVX512_VNNI = 0 |", cpuinfo) == ["AVX512_VNNI"]


def test_engines_by_name_and_by_beginning() -> None:
    assert [engine.name for engine in chosen(["llama.cpp-q4_k_m", "openvino"])] == ["llama.cpp-q4_k_m", "openvino"]
    assert [engine.name for engine in chosen(["edgellm"])] == ["edgellm"]
    assert len(chosen(["llama.cpp"])) == 6
    assert chosen([]) == list(ENGINES)
    with pytest.raises(UsageError, match="no such engine"):
        chosen(["vllm"])


def test_why_an_engine_is_missing_and_what_tuning_chose(tmp_path: Path) -> None:
    work, engine = Work(tmp_path), chosen(["llama.cpp-q4_0"])[0]
    folder = work.shape("s")
    folder.mkdir(parents=True)
    assert missing(engine, "s", work) == "no environment: bench_peers.py setup llama.cpp"
    python = work.python("llama.cpp")
    python.parent.mkdir(parents=True)
    python.touch()
    assert missing(engine, "s", work) == "no model: bench_peers.py models"
    (folder / "q4_0.json").write_text('{"missing": "too large"}')
    assert missing(engine, "s", work) == "too large"
    assert settings(engine, "s", work)["flash_attn"] is True
    work.tuned("s").write_text(json.dumps({"choice": {engine.name: {"flash_attn": False}}}))
    tuned = settings(engine, "s", work)
    assert (tuned["flash_attn"], tuned["repack"]) == (False, True)
    assert tuned["state"].endswith("llama.cpp-state-flash_attn-false")


def test_a_model_that_is_too_large_or_fails_leaves_its_reason(tmp_path: Path) -> None:
    work = Work(tmp_path)
    (tmp_path / "make" / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "make" / "venv" / "bin" / "python").symlink_to(sys.executable)
    folder = work.shape("smollm2-135m")
    for name in ("edgellm", "float16"):
        (folder / name).mkdir(parents=True)
    (folder / "float16" / "weights").write_bytes(bytes(1000))
    said: list[str] = []
    engines = chosen(["openvino", "llama.cpp-q4_0"])
    make_models("smollm2-135m", engines, work, Allowance(nbytes=1500), said.append)
    assert "more than" in work.facts(folder / "openvino")["missing"]
    assert "setup llama.cpp" in work.facts(folder / "q4_0.gguf")["missing"]
    assert not (folder / "float16").exists()
    log = tmp_path / "log"
    with pytest.raises(BuildFailed, match="out of paint"):
        _build([sys.executable, "-c", "raise SystemExit('out of paint')"], log, Allowance())
    with pytest.raises(BuildFailed, match="minutes"):
        _build([sys.executable, "-c", "import time; time.sleep(60)"], log, Allowance(seconds=0.1))


def test_jobs_keep_start_and_depth_apart(tmp_path: Path) -> None:
    engine = chosen(["llama.cpp-q4_0"])[0]
    shallow, deep = jobs("s", LLAMA_7B, engine, Workload((512, 4096), 64, (0, 2048, 8192), 2), Work(tmp_path), 3)
    assert [step["prompt"] for step in shallow["steps"]] == [512, 1]  # 4096 is all of this model's context
    assert [step["prompt"] for step in deep["steps"]] == [2048]
    assert "state" in deep["options"]
    assert "state" not in shallow["options"]
    assert shallow["seed"] != jobs("s", LLAMA_7B, engine, LOAD, Work(tmp_path), 4)[0]["seed"]
    assert len(jobs("s", LLAMA_7B, engine, Workload((512,), 64, (0,), 2), Work(tmp_path), 0)) == 1


def test_the_best_of_a_process_counts_and_start_only_once() -> None:
    figures = Figures()
    step = {"prompt": 512, "generate": 0, "decode_s": 0.0}
    steps = [{**step, "prefill_s": 2.0}, {**step, "prefill_s": 1.0}, {"prompt": 1, "generate": 64, "decode_s": 2.0}]
    read_turn(Turn({"seconds": 0.5, "head": "int8"}, 0.9, steps, 1000), figures, starts=True)
    steps = [{"prompt": 2048, "generate": 64, "prefill_s": 9.0, "decode_s": 4.0}]
    read_turn(Turn({"seconds": 0.7}, 1.1, steps, 5000, others=0.02), figures, starts=False)
    assert figures.values == {
        "prefill 512": [512.0],
        "decode 0": [32.0],
        "decode 2048": [16.0],
        "first token": [0.9],
        "load": [0.5],
        "memory": [1000],
    }
    assert (figures.facts, figures.others) == ({"head": "int8"}, 0.02)


FACTS = {"weight_bytes": 10**9, "head": "Q8_0", "cache_item_bytes": 2, "cache_head_bytes": 0}


def outcome() -> Outcome:
    own = {"prefill 512": [300.0, 330.0], "decode 0": [50.0, 50.0], "first token": [0.5, 0.5]}
    fast = {"prefill 512": [100.0, 110.0], "decode 0": [40.0, 50.0], "first token": [1.0, 1.0]}
    slow = {"prefill 512": [200.0, 100.0], "decode 0": [10.0, 10.0], "first token": [0.25, 0.25]}
    engines = {"edgellm": Figures(own, dict(FACTS)), "a": Figures(fast, dict(FACTS), others=0.3), "b": Figures(slow)}
    engines["c"] = Figures(problem="no environment")
    return Outcome(engines, [30e9, 40e9], [8e11], 3)


def test_ratios_are_paired_by_round_against_the_best_median() -> None:
    found = {(entry["engine"], entry["figure"]): entry for entry in ratios(outcome())}
    assert found["edgellm", "prefill 512"]["peer"] == "b"
    assert found["edgellm", "prefill 512"]["rounds"] == [1.5, 3.3]
    assert (found["edgellm", "decode 0"]["peer"], found["edgellm", "decode 0"]["median"]) == ("a", 1.125)
    assert (found["edgellm", "first token"]["peer"], found["edgellm", "first token"]["median"]) == ("b", 0.5)


def test_summary_and_table() -> None:
    facts = {**summary(outcome(), LLAMA_1B, LOAD), "quiet_limit": 0.05}
    # 2 * 16 layers * 8 heads * 64 numbers * 2 bytes a token, behind 1 token and half of 64
    assert cache_bytes(LLAMA_1B, FACTS, 33) == 2 * 16 * 8 * 64 * 2 * 34
    read = 10**9 + cache_bytes(LLAMA_1B, FACTS, 33)
    assert facts["engines"]["edgellm"]["read_bytes_per_token"] == {0: read}
    assert facts["engines"]["edgellm"]["bandwidth_share"][0] == pytest.approx(50 * read / 40e9)
    json.dumps(facts)
    text = markdown("llama-3.2-1b", facts, LOAD)
    assert "random weights" in text.splitlines()[0]
    assert "| edgellm | Q8_0 | 315 | 50.0 | - | 0.50 |" in text
    assert "| c | no environment |" in text
    assert "thrown away because others used the machine: 3" in text
    assert "NOT QUIET, others' share in turns that were kept: a 30%" in text
    assert "edgellm, prefill 512: 2.40x (1.50-3.30) of b" in text


def test_contenders_are_close_at_one_figure_at_least() -> None:
    def tried(prefill: float, decode: float) -> list[dict[str, Any]]:
        return [{"options": {}, "rates": {"prefill 512": prefill, "decode 0": decode}}]

    found = {
        "tried": {"a": tried(100, 50), "b": tried(200, 10), "c": tried(110, 39)},
        "choice": {name: {} for name in "abc"},
    }
    assert contenders(found) == ["a", "b"]


def test_tuning_keeps_the_fastest_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, engines = Work(tmp_path), chosen(["llama.cpp-q4_0", "edgellm"])
    work.shape("s").mkdir(parents=True)
    monkeypatch.setattr("tools.peers.tune.missing", lambda *given: None)

    def rounds(shape: str, config: Any, engines: list[Any], load: Workload, *given: Any) -> Outcome:
        options = settings(engines[0], shape, work)
        prefill = 100.0 if options["flash_attn"] else 120.0
        values = {"prefill 512": [prefill + (5.0 if options.get("n_ubatch") == 128 else 0.0)]}
        values |= {f"decode {depth}": [30.0 if options["flash_attn"] else 10.0] for depth in load.depths}
        return Outcome({engines[0].name: Figures(values)})

    monkeypatch.setattr("tools.peers.tune.run_rounds", rounds)
    found = tune("s", LLAMA_1B, engines, LOAD, work, Patience(), lambda text: None)
    assert found["choice"] == {"llama.cpp-q4_0": {"flash_attn": True, "n_ubatch": 128}}
    assert found["contenders"] == ["llama.cpp-q4_0"]
    assert json.loads(work.tuned("s").read_text()) == found
    assert settings(engines[0], "s", work)["n_ubatch"] == 128


def test_others_are_what_is_left_of_the_busy_time() -> None:
    stat = "cpu  100 20 30 800 40 5 5 0 7 0\ncpu0 1 2 3 4\n"
    assert quiet.parse(stat, 100) == (1.6, 10.0)
    assert quiet.others(quiet.Times(1.0, 10.0, 5.0), quiet.Times(4.0, 20.0, 7.5)) == pytest.approx(0.05)
    assert quiet.others(quiet.Times(1.0, 10.0, 5.0), quiet.Times(1.0, 10.0, 5.0)) == 0.0
    before = quiet.now()
    assert before.total >= before.busy > 0


class Shares:
    """In place of the watch: others' share of one turn after another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *shares: float) -> None:
        self._left = list(shares)
        monkeypatch.setattr(quiet, "wait", lambda limit, seconds: True)
        monkeypatch.setattr(quiet, "others", lambda before, after: self._left.pop(0))


def worker(tmp_path: Path, *lines: str, status: int = 0) -> Path:
    """An interpreter that says these lines, whatever it is to run."""
    path = tmp_path / "python"
    said = "\n".join(f"echo '{line}'" for line in lines)
    path.write_text(f"#!/bin/sh\n{said}\necho a reason >&2\nexit {status}\n")
    path.chmod(0o755)
    return path


LOADED, DONE = '{"event": "loaded", "seconds": 1.5}', '{"event": "done"}'


def test_a_disturbed_turn_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"x")
    job = {"model": str(model), "threads": 2}
    patience = Patience(retries=2)
    Shares(monkeypatch, 0.5, 0.02)
    step = '{"event": "step", "prompt": 512, "generate": 0, "prefill_s": 1.0, "decode_s": 0.0}'
    python = worker(tmp_path, "a library talks", LOADED, step, '{"event": "memory", "bytes": 7}', DONE)
    turn = take(python, "none", job, patience)
    assert (turn.others, turn.peak_bytes, len(turn.steps), patience.thrown_away) == (0.02, 7, 1, 1)
    Shares(monkeypatch, 0.5, 0.3, 0.4)
    assert take(python, "none", job, patience).others == 0.3
    assert patience.thrown_away == 3


@pytest.mark.parametrize(("lines", "status"), [([LOADED], 0), ([LOADED, DONE], 1)])
def test_a_worker_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], status: int
) -> None:
    Shares(monkeypatch, 0.0)
    (tmp_path / "model").touch()
    with pytest.raises(WorkerFailed, match="a reason"):
        take(
            worker(tmp_path, *lines, status=status),
            "none",
            {"model": str(tmp_path / "model"), "threads": 1},
            Patience(),
        )


def test_run_without_peers_prints_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.peers.rounds._measure_limits", lambda *given: None)
    out = tmp_path / "out.json"
    given = ["--work", str(tmp_path), "run", "--shape", "qwen2.5-0.5b", "--rounds", "1", "--json", str(out)]
    assert bench_peers.main(given) == 0
    shown = capsys.readouterr().out
    assert "| openvino | no environment: bench_peers.py setup openvino |" in shown
    report = json.loads(out.read_text())
    assert report["weights"] == "random"
    assert report["shapes"]["qwen2.5-0.5b"]["engines"]["ctranslate2"]["figures"] == {}


def test_wrong_arguments_end_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_peers.main(["--work", str(tmp_path), "run", "--engines", "vllm"]) == UsageError.exit_code
    assert bench_peers.main(["--work", str(tmp_path), "setup", "vllm"]) == UsageError.exit_code
    assert "no such environment" in capsys.readouterr().err
